"""One dialect: conventions that every file of the product follows."""

import ast
import importlib
import re
from collections.abc import Iterator

import pytest
from sightline_chassis.settings import Section
from test_arrows import ROOT, sources

# Their class alone does not say what went wrong; the other errors' classes do.
NEED_REASON = {
    "InvalidInput",
    "NotFound",
    "AlreadyExists",
    "PreconditionFailed",
    "PermissionDenied",
    "Unsupported",
    "DataCorrupted",
}
FILES = [(str(path.relative_to(ROOT)), path.read_text()) for path in sources()]
TREES = [(name, ast.parse(text)) for name, text in FILES]


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """(file, call, name of what is called) of the whole product."""
    for name, tree in TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                yield name, node, node.func.id if isinstance(node.func, ast.Name) else node.func.attr


def test_a_module_s_logger_is_called_logger() -> None:
    found = [line for _, text in FILES for line in text.splitlines() if re.match(r"\w+ = logging\.getLogger", line)]
    assert set(found) == {"logger = logging.getLogger(__name__)"}


def test_docstrings_have_single_backticks() -> None:
    for name, tree in TREES:
        for node in ast.walk(tree):
            match node:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    assert not re.search(r"(?<!`)``(?!`)", text), f"{name}:{node.lineno}"


def test_an_error_says_its_reason_where_its_class_does_not() -> None:
    bare = [
        f"{name}:{call.lineno}"
        for name, call, called in calls()
        if called in NEED_REASON and not {"reason", None} & {keyword.arg for keyword in call.keywords}
    ]
    assert not bare


def test_reasons_are_upper_snake() -> None:
    for name, call, _ in calls():
        for keyword in call.keywords:
            if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant) and keyword.value.value:
                assert re.fullmatch(r"[A-Z][A-Z0-9_]*", str(keyword.value.value)), f"{name}:{call.lineno}"


def sections(cls: type[Section] = Section) -> Iterator[type[Section]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from sections(sub)


@pytest.mark.parametrize(
    "module",
    [
        "sightline_scorer.settings",
        "sightline_scorer.gateway.settings",
        "sightline_sampler.settings",
        "sightline_trainer.settings",
        "sightline_trainer.recipe",
    ],
)
def test_keys_name_their_units_in_one_way(module: str) -> None:
    importlib.import_module(module)
    for section in sections():
        for key in section.model_fields:
            assert not re.search(r"_(s|sec|secs|ms|kb|mb|gb|tb|min|mins)$", key), f"{section.__name__}.{key}"
