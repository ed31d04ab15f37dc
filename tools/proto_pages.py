"""Write the documentation's proto pages: every message, field and call of a .proto file with its comment."""

from __future__ import annotations

import re
from pathlib import Path

_BEGIN = re.compile(r"(message|enum|service|oneof)\s+(\w+)\s*\{(\})?$")
_CALL = re.compile(r"rpc\s+(\w+)\((stream\s+)?(\w+)\)\s+returns\s+\((stream\s+)?(\w+)\)")
_FIELD = re.compile(r"((?:repeated\s+|optional\s+)?(?:map<[^>]+>|[\w.]+))\s+(\w+)\s*=\s*(\d+)")
_VALUE = re.compile(r"(\w+)\s*=\s*(-?\d+);")


def page(path: Path) -> str:
    """Markdown of one .proto file."""
    lines: list[str] = []
    comment: list[str] = []
    inside: list[str] = []
    package = ""
    for line in (each.strip() for each in path.read_text().splitlines()):
        told = " ".join(comment)
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        if line.startswith("package "):
            package = line.removeprefix("package ").rstrip(";")
            lines += [
                f"# {package}",
                "",
                f"`{path.name}`, as grpcurl and the generators of other languages read it.",
                "",
            ]
        elif (found := _BEGIN.match(line)) is not None:
            kind, name, empty = found.groups()
            if kind != "oneof":
                lines += ["", f"## {name}", "", told, ""]
                if kind == "service":
                    lines += ["| call | takes | gives | |", "|---|---|---|---|"]
                elif not empty:
                    lines += ["| field | type | number | |" if kind == "message" else "| value | number | |"]
                    lines += ["|---|---|---|---|" if kind == "message" else "|---|---|---|"]
            if not empty:
                inside.append(kind)
        elif line.startswith("}") and inside:
            inside.pop()
        elif (found := _CALL.match(line)) is not None:
            name, streamed, takes, streams, gives = found.groups()
            lines.append(f"| `{name}` | {streamed or ''}{_link(takes)} | {streams or ''}{_link(gives)} | {told} |")
        elif inside and inside[-1] == "enum" and (found := _VALUE.match(line)) is not None:
            lines.append(f"| `{found[1]}` | {found[2]} | {told} |")
        elif inside and inside[-1] in ("message", "oneof") and (found := _FIELD.match(line)) is not None:
            note = " (one of several)" if inside[-1] == "oneof" else ""
            lines.append(f"| `{found[2]}`{note} | `{found[1]}` | {found[3]} | {told} |")
        comment = []
    return "\n".join(lines) + "\n"


def _link(message: str) -> str:
    return f"[{message}](#{message.lower()})"
