"""Every key of a settings class with its type, default and meaning, for help and reference pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from sightline_chassis.layers import KeyShape, shape_of
from sightline_chassis.sections import Section

Node = dict[str, Any]


@dataclass(frozen=True)
class SettingKey:
    """One key.

    Attributes:
        path: dotted; NAME stands for the free names of a table.
        type: for people, such as "integer, 1 to 512".
        default: as JSON; for a part "on" or "off", for a key without a default "".
        description: one sentence.
    """

    path: str
    type: str
    default: str
    description: str


def keys_of(model: type[Section]) -> Iterator[SettingKey]:
    """All keys, in the order of the class; a part is followed by its settings."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})

    def resolve(node: Node) -> Node:
        if "$ref" in node:
            return {**definitions[node["$ref"].rsplit("/", 1)[1]], **{k: v for k, v in node.items() if k != "$ref"}}
        return node

    def section(node: Node) -> Node | None:
        """The section of an optional field."""
        options = [resolve(each) for each in node.get("anyOf", [])]
        found = [each for each in options if "properties" in each]
        return found[0] if len(found) == 1 and any(each.get("type") == "null" for each in options) else None

    def walk(node: Node, path: str, shape: KeyShape, on: bool) -> Iterator[SettingKey]:
        node = resolve(node)
        if "properties" in node:
            for name, child in node["properties"].items():
                inner = shape.child(name)
                stands = isinstance(shape.standing, Mapping) and name in shape.standing
                yield from walk(child, f"{path}.{name}" if path else name, inner, stands)
        elif isinstance(more := node.get("additionalProperties"), dict) and "properties" in resolve(more):
            yield from walk(more, f"{path}.NAME", shape.child(""), False)
        elif (part := section(node)) is not None:
            yield SettingKey(path, "section", "on" if on else "off", node.get("description", ""))
            yield from walk(part, path, shape, on)
        else:
            yield SettingKey(path, _kind(node, resolve), _default(node, shape), node.get("description", ""))

    return walk(schema, "", shape_of(model), False)


def _default(node: Node, shape: KeyShape) -> str:
    if "default" in node:
        return json.dumps(node["default"])
    return "" if shape.standing is None else json.dumps(to_jsonable_python(shape.standing))


def _kind(node: Node, resolve: Callable[[Node], Node]) -> str:
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_kind(resolve(each), resolve) for each in node["anyOf"]))
    if "enum" in node or "const" in node:
        return ", ".join(str(each) for each in node.get("enum", [node.get("const")]))
    kind = str(node.get("type", "value"))
    low = node.get("minimum", node.get("exclusiveMinimum"))
    high = node.get("maximum", node.get("exclusiveMaximum"))
    if low is not None and high is not None:
        return f"{kind}, {low:g} to {high:g}"
    return f"{kind}, from {low:g}" if low is not None else kind
