"""Read untrusted YAML with bounds, so that a small text is cheap, whatever it contains.

480 bytes of merge keys can expand to a billion values, and deeply nested brackets overflow the stack. So bytes, values
and depth are counted while a text is read. Before values are built, their expanded number is counted: every alias
counts as often as it is used.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

MOST_BYTES = 1 << 18
MOST_VALUES = 10_000
MOST_DEPTH = 64


class YamlRefused(yaml.YAMLError):
    """The text is over a bound, or holds a value without a meaning in YAML; the message says which."""


class KeyTwice(yaml.MarkedYAMLError):
    """A mapping has a key twice; `problem` says which."""


class _Loader(yaml.SafeLoader):
    """Counts what it reads, and refuses duplicate keys, of which YAML would silently keep the last."""

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
    """The content of a text with one YAML document, with YAML's safe types.

    Raises:
        yaml.YAMLError: it is not YAML; `YamlRefused` if it is over a bound, `KeyTwice` if a key is given twice.
    """
    if len(text) > MOST_BYTES or len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise YamlRefused(f"holds over {MOST_BYTES} bytes")
    try:
        loader = _Loader(text)
    except ValueError as error:  # a character that YAML does not allow, such as NUL
        raise YamlRefused(str(error)[:200]) from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MOST_VALUES:
            raise YamlRefused(f"expands to over {MOST_VALUES} values, aliases and merges included")
        return loader.construct_document(node)
    except yaml.YAMLError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a 13th month, a number of 5000 digits
        raise YamlRefused(f"holds a value without a meaning in YAML: {str(error)[:200]}") from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values that a node expands to. The text's depth is bounded, and aliases do not add to it: each node is
    counted once, and a node inside itself is refused."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # for a node that contains itself, until it is counted
        items = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        total = 1
        for item in items:
            total += _count(item, known)
            if total > MOST_VALUES:
                break
        known[id(node)] = total
    return known[id(node)]
