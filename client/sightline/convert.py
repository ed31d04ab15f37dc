"""The one converter between frozen dataclasses and protobuf messages of the same field names.

A field's annotation and its message's descriptor decide the conversion, once for each pair of classes:

    annotation                 field of the message
    int, str, bool, float      the same
    str                        bytes: hexadecimal; an enum: its name as below
    Literal["hot", "none"]     enum SWAP_MODE_HOT, SWAP_MODE_NONE: lower case, without the common prefix
    X | None                   a field with presence; None is not sent
    tuple[X, ...], frozenset   repeated; a set travels sorted
    NDArray[np.float32]        repeated numbers
    Mapping[str, X]            map
    datetime                   google.protobuf.Timestamp
    a dataclass                a message
    A | B of dataclasses       a message of one `oneof`: the member with the same field names

A field with presence that is absent takes the dataclass's default, or None if that is allowed. An enum number that this
release does not know (from a newer service, say) becomes "kind_7". Fields that only the message has are ignored.

The few messages that differ from their types (scores are columns, candidates have their own rule) are converted where
they are used.
"""

from __future__ import annotations

import datetime
import functools
import operator
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, Union, get_args, get_origin

import numpy as np
import numpy.typing as npt
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

T = TypeVar("T")
M = TypeVar("M", bound=Message)
Turn = Callable[[Any], Any]


def from_message(message: Message, kind: type[T]) -> T:
    """The dataclass of a message."""
    wanted: Any = kind
    found: T = _reader(wanted, message.DESCRIPTOR)(message)
    return found


def to_message(value: object, kind: type[M]) -> M:
    """The message of a dataclass. Raises ValueError or TypeError if a value does not fit its field."""
    kept: Any = type(value)
    return kind(**_writer(kept, kind.DESCRIPTOR)(value))


@functools.cache
def _reader(kind: Any, message: Any) -> Turn:
    plain: list[str] = []
    turned: list[tuple[str, Turn]] = []
    for name, annotation, default in _fields(kind):
        field = message.fields_by_name[name]
        read = _from_field(annotation, field)
        if field.has_presence and (default is not MISSING or _not_none(annotation) != annotation):
            turned.append((name, _if_there(name, read, None if default is MISSING else default)))
        elif read is None:
            plain.append(name)
        else:
            turned.append((name, _then(operator.attrgetter(name), read)))
    get = operator.attrgetter(*plain) if len(plain) > 1 else None

    def reader(given: Any) -> Any:
        values = dict(zip(plain, get(given), strict=True)) if get else {name: getattr(given, name) for name in plain}
        for name, turn in turned:
            values[name] = turn(given)
        return kind(**values)

    return reader


@functools.cache
def _writer(kind: Any, message: Any) -> Turn:
    turns = [(name, _to_field(annotation, message.fields_by_name[name])) for name, annotation, _ in _fields(kind)]

    def writer(value: Any) -> dict[str, Any]:
        found = {}
        for name, turn in turns:
            part = getattr(value, name)
            if part is not None:
                found[name] = part if turn is None else turn(part)
        return found

    return writer


def _fields(kind: type) -> list[tuple[str, Any, Any]]:
    """Name, annotation and default of each field."""
    hints = typing.get_type_hints(kind)
    found = []
    for field in fields(kind):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        found.append((field.name, hints[field.name], default))
    return found


def _from_field(annotation: Any, field: FieldDescriptor) -> Turn | None:
    """Converts the field's value; None if it needs no conversion."""
    annotation, origin = _not_none(annotation), get_origin(_not_none(annotation))
    if _is_array(annotation):
        return functools.partial(np.array, dtype=_dtype(annotation))
    if origin in (tuple, frozenset):
        item, collect = _from_value(get_args(annotation)[0], field), origin
        return collect if item is None else lambda values: collect(map(item, values))
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict
    return _from_value(annotation, field)


def _from_value(annotation: Any, field: FieldDescriptor) -> Turn | None:
    if field.enum_type is not None:
        return _enum_names(field.enum_type).__getitem__
    if annotation is datetime.datetime:
        return lambda stamp: stamp.ToDatetime(datetime.UTC)
    if field.message_type is not None:
        read = _from_union if _is_union(annotation) else _reader
        return read(annotation, field.message_type)
    return bytes.hex if annotation is str and field.type == FieldDescriptor.TYPE_BYTES else None


def _to_field(annotation: Any, field: FieldDescriptor) -> Turn | None:
    annotation, origin = _not_none(annotation), get_origin(_not_none(annotation))
    if _is_array(annotation):
        return operator.methodcaller("tolist")
    if origin in (tuple, frozenset):
        item, arrange = _to_value(get_args(annotation)[0], field), sorted if origin is frozenset else list

        def several(values: Any) -> list[Any]:
            if isinstance(values, str):
                raise TypeError(f"{field.name} is a sequence of strings, not one string")
            return arrange(values if item is None else map(item, values))

        return several
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict
    return _to_value(annotation, field)


def _to_value(annotation: Any, field: FieldDescriptor) -> Turn | None:
    if field.enum_type is not None:
        return enum_numbers(field.enum_type).__getitem__
    if annotation is datetime.datetime:
        return _timestamp
    if field.message_type is not None:
        write = _to_union if _is_union(annotation) else _writer
        return write(annotation, field.message_type)
    return bytes.fromhex if annotation is str and field.type == FieldDescriptor.TYPE_BYTES else None


def _from_union(annotation: Any, message: Descriptor) -> Turn:
    (oneof,) = message.oneofs
    readers = {
        member.name: (operator.attrgetter(member.name), _reader(kind, member.message_type))
        for kind, member in _members(annotation, message).items()
    }

    def reader(given: Message) -> Any:
        name = given.WhichOneof(oneof.name)
        if name is None:
            raise ValueError(f"{message.name} does not set {oneof.name}")
        get, read = readers[name]
        return read(get(given))

    return reader


def _to_union(annotation: Any, message: Descriptor) -> Turn:
    writers = {
        kind: (member.name, _writer(kind, member.message_type))
        for kind, member in _members(annotation, message).items()
    }

    def writer(value: object) -> dict[str, Any]:
        if type(value) not in writers:
            raise TypeError(f"{value!r} is not a {message.name.lower()}")
        name, write = writers[type(value)]
        return {name: write(value)}

    return writer


def _members(annotation: Any, message: Descriptor) -> dict[type, FieldDescriptor]:
    """The member of a message's oneof for each class of a union."""
    by_fields = {frozenset(of.fields_by_name): member for member in message.fields if (of := member.message_type)}
    return {kind: by_fields[frozenset(field.name for field in fields(kind))] for kind in get_args(annotation)}


class _EnumNames(dict[int, str]):
    def __init__(self, enum: EnumDescriptor, prefix: str) -> None:
        super().__init__((value.number, value.name.removeprefix(prefix).lower()) for value in enum.values)
        self._unknown = prefix.rstrip("_").rpartition("_")[2].lower()

    def __missing__(self, number: int) -> str:
        return f"{self._unknown}_{number}"


@functools.cache
def _enum_names(enum: EnumDescriptor) -> _EnumNames:
    zero = enum.values_by_number[0].name
    return _EnumNames(enum, zero.removesuffix("UNSPECIFIED"))


@functools.cache
def enum_numbers(enum: EnumDescriptor) -> Mapping[str, int]:
    """The numbers of an enum by their names in a dataclass, except the unspecified one."""
    return {name: number for number, name in _enum_names(enum).items() if number}


def enum_name(enum: EnumDescriptor, number: int) -> str:
    """The name of an enum's value in a dataclass."""
    return _enum_names(enum)[number]


def _if_there(name: str, read: Turn | None, default: Any) -> Turn:
    get = operator.attrgetter(name) if read is None else _then(operator.attrgetter(name), read)
    return lambda given: get(given) if given.HasField(name) else default


def _then(first: Turn, second: Turn) -> Turn:
    return lambda given: second(first(given))


def _not_none(annotation: Any) -> Any:
    """`X` of `X | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        rest = tuple(part for part in get_args(annotation) if part is not type(None))
        return functools.reduce(operator.or_, rest)
    return annotation


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _is_array(annotation: Any) -> bool:
    """Whether it is NDArray[X]: since NumPy 2.5 an alias, before that ndarray[..., dtype[X]]."""
    return get_origin(annotation) in (np.ndarray, npt.NDArray)


def _dtype(annotation: Any) -> Any:
    """X of NDArray[X]."""
    last = get_args(annotation)[-1]
    return get_args(last)[0] if get_origin(last) is np.dtype else last


def _timestamp(moment: datetime.datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
