"""Documented commands: those of README, docs, the services' READMEs, recipes' headers and examples, as words."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from running import ROOT

PROGRAMS = (
    "sightline", "python", "make", "pip", "uv", "docker", "kubectl", "helm", "curl", "grpcurl", "git", "export", "npm",
    "node", "go", "buf", "echo", "kill", "promtool", "torchrun", "vllm", "cp", "cd", "source",
)  # fmt: skip
"""What a line of a listing begins with where it is a command."""
_ENVIRONMENT = re.compile(r"(?:[A-Z_]+=\S+ )*")
_FENCES = ("", "sh", "bash", "console")
_INLINE = re.compile(r"`(sightline [^`\n]+)`")


@dataclass(frozen=True)
class Documented:
    """A command where it stands."""

    file: str
    line: int
    text: str

    @property
    def id(self) -> str:
        """For people."""
        return f"{self.file}:{self.line}"

    @property
    def bare(self) -> str:
        """Without the variables that are set in front of it."""
        return _ENVIRONMENT.sub("", self.text)

    @property
    def program(self) -> str:
        """What it runs."""
        return self.bare.split()[0]

    def words(self) -> list[str]:
        """As a shell takes them apart; what is set in front, a comment behind and `[--an OPTION]` are left out."""
        return shlex.split(re.sub(r" \[--[^\]]*\]", "", self.bare), comments=True)


def documented() -> list[Documented]:
    """All of them."""
    found: list[Documented] = []
    for file in _texts():
        found += _of_markdown(file)
    for file in sorted((ROOT / "recipes").glob("*.yaml")):
        lines = [line[1:] if line.startswith("#") else "" for line in file.read_text().splitlines()]
        found += _commands(file, [re.sub(r"^\s*[\w ]+: +(?=sightline )", "    ", line) for line in lines], [])
    for file in sorted((ROOT / "examples").rglob("*.py")):
        docstring = file.read_text().split('"""')[1]
        found += _commands(file, docstring.splitlines(), [])
    return found


def _texts() -> Iterator[Path]:
    yield from (ROOT / "README.md", ROOT / "CONTRIBUTING.md")
    for place in ("docs", "services", "examples", "playground", "helm"):
        for file in sorted((ROOT / place).rglob("*.md")):
            # A lab book tells what was done on its day; the reference is made of the code.
            if file.name not in ("log.md", "MODEL_CARD.md") and "docs/reference" not in str(file):
                yield file


def _of_markdown(file: Path) -> list[Documented]:
    fence: str | None = None
    listing, inline = [], []
    for line in file.read_text().splitlines():
        if line.lstrip().startswith("```"):
            fence = line.strip()[3:] if fence is None else None
            listing.append("")
        elif fence is not None:
            listing.append(line if fence in _FENCES else "")
        elif line.startswith("    "):
            listing.append(line)
        else:
            listing.append("")
            inline += [(len(listing), text) for text in _INLINE.findall(line)]
    return _commands(file, listing, inline)


def _commands(file: Path, lines: list[str], inline: list[tuple[int, str]]) -> list[Documented]:
    """A command may go on behind a backslash at the end of a line, and inside a quoted text."""
    name = str(file.relative_to(ROOT))
    found = [Documented(name, number, text) for number, text in inline]
    number = 0
    while number < len(lines):
        first, text = number + 1, lines[number].strip()
        number += 1
        words = _ENVIRONMENT.sub("", text).split()
        if not words or words[0] not in PROGRAMS:
            continue
        while number < len(lines) and (text.endswith("\\") or _open(text)):
            text = f"{text.removesuffix(chr(92))} {lines[number].strip()}"
            number += 1
        found += [Documented(name, first, part) for part in _parts(text)]
    return found


def _open(text: str) -> bool:
    """Whether a quoted text goes on behind it."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return True
    return False


def _parts(text: str) -> list[str]:
    """`a && b` are two, `a | b` is its first."""
    lexer = shlex.shlex(text, posix=False, punctuation_chars="&|>")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    skipping = False
    for word in lexer:
        if word == "&&":
            parts.append([])
            skipping = False
        elif set(word) <= set("|>&"):
            skipping = True
        elif not skipping:
            parts[-1].append(word)
    return [" ".join(part) for part in parts if part]
