"""Measure the size of each extra in this environment and write it into docs/install.md.

    python tools/extra_sizes.py            prints the table
    python tools/extra_sizes.py --write    ... and puts it into docs/install.md

An extra's packages are its requirements for this platform and Python, and theirs in turn; a package's size is the sum
of the files in its RECORD. Nothing is downloaded. All extras must be installed (`make`).
"""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import platform
import sys
import textwrap
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/install.md"
BEGIN, END = "<!-- sizes: tools/extra_sizes.py --write -->\n", "<!-- end of sizes -->\n"
SHOWN = (
    *("", "service", "gateway", "scorer-remote", "sampler-remote", "report"),
    *("scorer", "sampler", "trainer", "playground", "s3", "traces", "qlora", "liger"),
)
_MIB = 2**20


def packages(requirements: Iterable[str], extras: dict[str, list[str]]) -> set[str]:
    """Names of all packages that the requirements install; ours are read from pyproject.toml."""
    todo, seen, found = [Requirement(text) for text in requirements], set(), set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        key = (name, tuple(sorted(wanted.extras)))
        if key in seen:
            continue
        seen.add(key)
        if name == "sightline":
            todo += [Requirement(text) for extra in wanted.extras for text in extras[extra]]
            continue
        found.add(name)
        for text in metadata.requires(name) or ():
            need = Requirement(text)
            asked = [{"extra": extra} for extra in ("", *wanted.extras)]
            if need.marker is None or any(need.marker.evaluate(environment) for environment in asked):
                todo.append(need)
    return found


def size(name: str) -> int:
    """Bytes of an installed package's files."""
    files = metadata.files(name) or []
    return sum(file.size or 0 for file in files if ".." not in file.parts[:1] or file.size)


def table() -> str:
    """The table, largest packages named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras, base = project["optional-dependencies"], project["dependencies"]
    ours = sum(file.stat().st_size for place in _own_places() for file in place.rglob("*") if file.is_file())
    lines = ["| install | packages | MiB | of which |", "|---|---|---|---|"]
    for extra in SHOWN:
        names = packages([*base, *(extras[extra] if extra else ())], extras)
        sizes = sorted(((size(name), name) for name in names), reverse=True)
        total = sum(each for each, _ in sizes) + ours
        largest = ", ".join(f"{name} {each / _MIB:.0f}" for each, name in sizes[:4] if each > 10 * _MIB)
        shown = f"sightline[{extra}]" if extra else "sightline"
        lines.append(f"| `{shown}` | {len(names) + 1} | {total / _MIB:,.0f} | {largest} |")
    here = f"{platform.system()} {platform.machine()}, Python {sys.version_info.major}.{sys.version_info.minor}"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "grpcio"))
    told = f"MiB of files as installed, Sightline's own {ours / _MIB:.0f} among them"
    lines += ["", textwrap.fill(f"Measured on {here}, {versions}; {told}.", 100)]
    return "\n".join(lines) + "\n"


def _own_places() -> list[Path]:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    return [ROOT / place for place in (*build["packages"], *build["force-include"])]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/install.md")
    made = table()
    print(made)
    if parser.parse_args().write:
        text = PAGE.read_text()
        head, _, rest = text.partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}{made}{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
