"""Reads pickles of plain values (dicts, lists, texts, bytes, numbers) without unpickling them.

Reward clients of text-to-image RL send pickles, and unpickling untrusted data runs its code. Here the opcodes are read
one by one (`pickletools.genops`, which executes nothing); those that name a class, call or build anything are refused,
so the result can only be plain values.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from sightline.errors import InvalidInput

_MARK = object()
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_MOST_OPCODES = 1_000_000


def plain_values(content: bytes) -> Any:
    """The plain value in a pickle of protocol 2 to 5.

    Raises:
        InvalidInput: PICKLE_REFUSED: it is not a pickle, or holds more than plain values.
    """
    try:
        return _read(content)
    except InvalidInput:
        raise
    except Exception as error:  # pickletools raises many errors; any means that the bytes are not such a pickle
        raise InvalidInput(
            f"the body is not a pickle of plain values: {type(error).__name__}: {str(error)[:200]}",
            reason="PICKLE_REFUSED",
        ) from error


def _read(content: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for count, (opcode, value, _) in enumerate(pickletools.genops(content)):
        name = opcode.name
        if count > _MOST_OPCODES:
            raise _refused("it has too many parts")
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            (result,) = stack
            return result
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _VALUES:
            stack.append(value)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else _above_mark(stack)
            _a(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else _above_mark(stack)
            keys = [_a(str, key) for key in items[::2]]  # hashing a tuple recurses without a bound
            _a(dict, stack[-1]).update(zip(keys, items[1::2], strict=True))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "TUPLE":
            stack.append(tuple(_above_mark(stack)))
        else:
            raise _refused(f"opcode {name}")
    raise _refused("it ends early")


def _above_mark(stack: list[Any]) -> list[Any]:
    place = next(number for number in range(len(stack) - 1, -1, -1) if stack[number] is _MARK)
    items = stack[place + 1 :]
    del stack[place:]
    return items


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise _refused(f"{kind.__name__} expected")
    return value


def _refused(what: str) -> InvalidInput:
    return InvalidInput(
        f"the body is a pickle of more than plain values ({what}): send images as bytes, prompts as texts",
        reason="PICKLE_REFUSED",
    )
