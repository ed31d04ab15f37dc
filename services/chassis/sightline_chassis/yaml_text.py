"""Untrusted YAML, read with bounds, so that a small text costs little whatever it contains.

480 bytes of merge keys can stand for a billion values, and brackets in brackets overflow a stack. So bytes, values and
depth are counted while a text is read, and before anything is made of it, what it stands for: every alias is counted
as often as it is named.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

MOST_BYTES = 1 << 18
MOST_VALUES = 10_000
MOST_DEPTH = 64


class YamlRefused(yaml.YAMLError):
    """The text is over a bound, or holds a value that YAML has no meaning for; says which."""


class KeyTwice(yaml.MarkedYAMLError):
    """A key stands twice in one mapping; `problem` says which."""


class _Loader(yaml.SafeLoader):
    """Counts what it reads, and refuses a key given twice, of which YAML would silently keep the last."""

    _depth = _values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._values += 1
        if self._depth > MOST_DEPTH:
            raise YamlRefused(f"is nested over {MOST_DEPTH} deep")
        if self._values > MOST_VALUES:
            raise YamlRefused(f"holds over {MOST_VALUES} values")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in names:
                    raise KeyTwice(problem=f"{key.value[:200]} is given twice", problem_mark=node.start_mark)
                names.add(key.value)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


def load_yaml(text: str) -> Any:
    """What a text of one YAML document holds, by YAML's safe types.

    Raises:
        yaml.YAMLError: it is none; `YamlRefused` where it is over a bound, `KeyTwice` where it gives a key twice.
    """
    if len(text) > MOST_BYTES or len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise YamlRefused(f"holds over {MOST_BYTES} bytes")
    try:
        loader = _Loader(text)
    except ValueError as error:  # a letter that YAML does not take, such as NUL
        raise YamlRefused(str(error)[:200]) from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MOST_VALUES:
            raise YamlRefused(f"stands for over {MOST_VALUES} values, aliases and merges counted")
        return loader.construct_document(node)
    except yaml.YAMLError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a 13th month, a number of 5000 digits
        raise YamlRefused(f"holds a value that YAML has no meaning for: {str(error)[:200]}") from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values that a node stands for. Its own depth is bounded, that through aliases is not more: each is counted once,
    and one inside itself is refused."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # of one that holds itself, until it is counted
        items = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        total = 1
        for item in items:
            total += _count(item, known)
            if total > MOST_VALUES:
                break
        known[id(node)] = total
    return known[id(node)]
