"""The pages: the READMEs' trees must match the existing files, and one wrap width applies."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT

PACKAGES = {
    "services/chassis/README.md": "services/chassis",
    "services/scorer/README.md": "services/scorer",
    "services/sampler/README.md": "services/sampler",
    "services/trainer/README.md": "services/trainer",
    "playground/README.md": "playground",
}
NAME = re.compile(r"[\w./-]+(?:/|\.\w+)(?=[\s,;:]|$)|Makefile")
WIDTH = 100
UNNAMED = {"__init__.py", "__main__.py", "py.typed"}  # their folder says everything about them


def tree(readme: Path, root: Path, first: str) -> Iterator[Path]:
    """The paths in the tree after the line `first`, by indentation.

    A line is names, two spaces or more, and what they are for; a name is of the folder above that is indented less, or
    of the folder of the name before it on the line. Where a line begins with a folder, what is said of it may name
    files of it.
    """
    above: list[tuple[int, Path]] = []
    lines = readme.read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.strip().startswith(first))
    for line in lines[begin:]:
        indent = len(line) - len(line.lstrip())
        if not line.strip() or line.startswith("```"):
            return
        names, _, meaning = line.strip().partition("  ")
        while above and above[-1][0] >= indent:
            above.pop()
        folder = above[-1][1] if above else root
        found = NAME.findall(names)
        assert found, f"{readme}: names nothing: {line}"
        for name in found:
            path = folder / name
            yield path
            if name.endswith("/"):
                above.append((indent, path))
            folder = path.parent
        if found[-1].endswith("/"):
            yield from (path / each for each in NAME.findall(meaning) if each.endswith(".py") or (path / each).exists())


def product(package: Path) -> set[Path]:
    """What a package's tree must name: its files except those in `UNNAMED`, and its folders."""
    return {path for path in package.rglob("*") if "__pycache__" not in path.parts and path.name not in UNNAMED}


@pytest.mark.parametrize("readme", sorted(PACKAGES))
def test_a_package_is_as_its_tree_says(readme: str) -> None:
    folder = ROOT / PACKAGES[readme]
    (package,) = folder.glob("sightline_*/")
    named = set(tree(ROOT / readme, folder, f"{package.name}/"))
    assert sorted(str(path) for path in named if not path.exists()) == [], "named, and not there"
    assert sorted(str(path) for path in product(package) - named) == [], "there, and not named"


def test_the_tree_of_the_house() -> None:
    named = set(tree(ROOT / "README.md", ROOT, "Makefile"))
    assert sorted(str(path) for path in named if not path.exists()) == [], "named, and not there"
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    shown = {path for path in ROOT.glob("[a-z]*/") if path.name not in ignored}
    shown |= set(ROOT.glob("services/*/sightline_*/")) | set(ROOT.glob("services/trainer/sightline_trainer/[a-z]*/"))
    assert sorted(str(path) for path in shown - {above for path in named for above in (path, *path.parents)}) == []


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("services/*/README.md"), *ROOT.glob("*/README.md")]


@pytest.mark.parametrize("page", sorted(str(page.relative_to(ROOT)) for page in PAGES))
def test_prose_is_wrapped_at_one_width(page: str) -> None:
    """Tables, listings, pictures and lines of one unbreakable word may be longer."""
    long, fenced, listing, before = [], False, False, ""
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        listing = line.startswith("    ") and (listing or not before.strip())
        free = fenced or listing or line.lstrip().startswith(("|", "!["))
        if len(line) > WIDTH and len(line.split()) > 1 and not free:
            long.append(number)
        before = line
    assert long == [], f"longer than {WIDTH} characters: wrap these lines"
