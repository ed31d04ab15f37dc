"""The arrows of the house: which package may import which, and other rules for every file of the product."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "sightline": ROOT / "client/sightline",
    "sightline_chassis": ROOT / "services/chassis/sightline_chassis",
    "sightline_scorer": ROOT / "services/scorer/sightline_scorer",
    "sightline_sampler": ROOT / "services/sampler/sightline_sampler",
    "sightline_trainer": ROOT / "services/trainer/sightline_trainer",
    "sightline_playground": ROOT / "playground/sightline_playground",
    "sightline_cli": ROOT / "cli/sightline_cli",
}
# Packages that a package may import besides itself.
ALLOWED = {
    "sightline": set(),
    "sightline_chassis": {"sightline"},
    "sightline_scorer": {"sightline", "sightline_chassis"},
    "sightline_sampler": {"sightline", "sightline_chassis"},
    "sightline_trainer": {"sightline", "sightline_chassis"},
    "sightline_playground": set(),
    "sightline_cli": set(PACKAGES),
}
VAGUE = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
MOST_LINES = 500


def sources() -> Iterator[Path]:
    """The product's files, except the stubs generated from the protos."""
    for root in PACKAGES.values():
        yield from (path for path in root.rglob("*.py") if "_pb2" not in path.name)


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports: at the top, inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    allowed = {package, *ALLOWED[package]}
    for path in PACKAGES[package].rglob("*.py"):
        for name in imports(path):
            top = name.split(".")[0]
            assert top not in PACKAGES or top in allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_files_import_each_other_in_no_circle() -> None:
    modules = {
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for root in PACKAGES.values()
        for path in root.rglob("*.py")
    }

    def imported(name: str, path: Path) -> set[str]:
        found = {full if full in modules else full.rpartition(".")[0] for full in imports(path)}
        return {to for to in found if to in modules and to != name}

    graph = {name: imported(name, path) for name, path in modules.items()}
    visiting: list[str] = []
    done: set[str] = set()

    def visit(name: str) -> None:
        assert name not in visiting, " -> ".join([*visiting[visiting.index(name) :], name])
        if name in done:
            return
        visiting.append(name)
        for to in graph[name]:
            visit(to)
        visiting.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_no_module_has_a_vague_name() -> None:
    for root in PACKAGES.values():
        for path in root.rglob("*"):
            assert path.stem not in VAGUE, path


def test_no_file_is_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources()
        if (lines := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert not long


def test_a_public_class_name_stands_once() -> None:
    places = defaultdict(list)
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
