"""The arrows of the house: which package may import which."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "sightline_chassis": ROOT / "services/chassis/sightline_chassis",
    "sightline_scorer": ROOT / "services/scorer/sightline_scorer",
    "sightline_sampler": ROOT / "services/sampler/sightline_sampler",
    "sightline_trainer": ROOT / "services/trainer/sightline_trainer",
    "sightline_playground": ROOT / "playground/sightline_playground",
    "sightline_cli": ROOT / "cli/sightline_cli",
}
# What a package may import beside itself: another package of ours, or only one of its modules.
ALLOWED = {
    "sightline_chassis": set(),
    "sightline_scorer": {"sightline_chassis"},
    "sightline_sampler": {"sightline_chassis"},
    "sightline_trainer": {"sightline_chassis", "sightline_scorer.client", "sightline_sampler.client"},
    "sightline_playground": set(),
    "sightline_cli": set(PACKAGES),
}
VAGUE = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, at the top or later."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    allowed = {package, *ALLOWED[package]}
    for path in PACKAGES[package].rglob("*.py"):
        for name in imports(path):
            if not name.startswith("sightline_"):
                continue
            fits = any(name == one or name.startswith(f"{one}.") or one.startswith(f"{name}.") for one in allowed)
            assert fits, f"{path.relative_to(ROOT)} imports {name}"


def test_modules_import_each_other_in_no_circle() -> None:
    modules = {
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for root in PACKAGES.values()
        for path in root.rglob("*.py")
    }

    def top_level(path: Path) -> Iterator[str]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    yield name if name in modules else f"{node.module}"

    graph = {name: {to for to in top_level(path) if to in modules and to != name} for name, path in modules.items()}
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
