"""Conversations: several images, several turns and a system prompt, in the forms that callers use. Light.

    sampler.sample([left, right], "What differs?", n=8)                   # images first, then the text
    sampler.sample(photo, [                                                # chat messages, as TRL and transformers have
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which fruit?"}]},
        {"role": "assistant", "content": "Lemon."},
        {"role": "user", "content": "And its colour?"},
    ], n=8)

A message may also hold its image: `{"type": "image", "image": photo}`. If no message marks the images' places, they
come before the first user's text, as in TRL.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast, get_args

from sightline.errors import InvalidInput
from sightline.pictures import Picture

Role = Literal["system", "user", "assistant"]
_ROLES = get_args(Role)


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: who speaks.
        content: its texts in order, with None at the place of each image.
    """

    role: Role
    content: tuple[str | None, ...]

    @property
    def text(self) -> str:
        """Its texts, one a line."""
        return "\n".join(part for part in self.content if part is not None)

    @property
    def images(self) -> int:
        """Number of its images."""
        return self.content.count(None)

    def message(self) -> dict[str, Any]:
        """The turn in the form for chat templates."""
        parts = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in self.content]
        return {"role": self.role, "content": parts}


Message: TypeAlias = Turn | Mapping[str, Any]
"""A turn, or a chat message: `{"role": "user", "content": "text"}`, or as content a list of `{"type": "text", "text":
...}`, `{"type": "image"}` and `{"type": "image", "image": picture}`."""

Images: TypeAlias = Picture | Sequence[Picture] | None
"""One image or several (see `Picture`); None for a text-only prompt, or if the messages hold them."""

Asked: TypeAlias = str | Sequence[Message]
"""A user's text, or the messages of a conversation that ends with one."""


def user_turn(text: str, images: int = 0) -> tuple[Turn]:
    """A conversation of one user's text after this many images."""
    return (Turn("user", (*[None] * images, text)),)


def without_images(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The same conversation, without images."""
    return tuple(Turn(turn.role, tuple(part for part in turn.content if part is not None)) for turn in turns)


def plain(turns: Sequence[Turn]) -> str | None:
    """The user's text, if the conversation is one text after at most one image; otherwise None."""
    if len(turns) != 1 or turns[0].role != "user" or turns[0].images > 1:
        return None
    *before, text = turns[0].content or (None,)
    return text if before in ([], [None]) else None


def conversation(images: Images, asked: Asked) -> tuple[list[Picture], tuple[Turn, ...]]:
    """The images, in the order of their places, and the turns.

    Raises:
        InvalidInput: a message is malformed, or the numbers of images and places differ; see also `check_turns`.
    """
    given = _listed(images)
    if isinstance(asked, str):
        return given, user_turn(asked, len(given))
    if not isinstance(asked, Sequence) or isinstance(asked, bytes | bytearray | memoryview):
        raise InvalidInput(
            f"the prompt is a {type(asked).__name__}, not a string or a list of messages", reason="PROMPT_NOT_A_STRING"
        )
    turns: list[Turn] = []
    held: list[Picture | None] = []
    for number, message in enumerate(asked):
        turn, own = _turn(message, number)
        turns.append(turn)
        held += own
    if given and not held:
        first = next((at for at, turn in enumerate(turns) if turn.role == "user"), None)
        if first is not None:
            held = [None] * len(given)
            turns[first] = Turn("user", (*[None] * len(given), *turns[first].content))
    check_turns(turns)
    return list(_placed(held, given)), tuple(turns)


def check_turns(turns: Sequence[Turn]) -> None:
    """Refuse a conversation that is not valid.

    Raises:
        InvalidInput: it does not end with a user's text, a system turn is not the first, an image is not in a user's
            turn, or a turn is empty.
    """
    if not turns:
        raise _bad("the conversation has no turn to answer: end it with a turn of the user")
    if turns[-1].role != "user":
        raise _bad(f"the last turn must be the user's, which the model answers; it is the {turns[-1].role}'s")
    for number, turn in enumerate(turns):
        if turn.role == "system" and number:
            raise _bad(f"turns[{number}] is the system's, which can only be the first")
        if turn.role != "user" and turn.images:
            raise _bad(
                f"turns[{number}] is the {turn.role}'s and holds an image: only the user's turns may contain images"
            )
        last = number == len(turns) - 1
        if not turn.text.strip() and (last or not turn.images):
            raise InvalidInput("the prompt is empty" if last else f"turns[{number}] is empty", reason="PROMPT_EMPTY")


def _listed(images: Images) -> list[Picture]:
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [cast(Picture, images)]


def _turn(message: object, number: int) -> tuple[Turn, list[Picture | None]]:
    """A turn, and for each of its image places the message's own image."""
    if isinstance(message, Turn):
        return message, [None] * message.images
    if not isinstance(message, Mapping):
        raise _bad(f"turns[{number}] is a {type(message).__name__}, not a message with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise _bad(f"turns[{number}] is of role {role!r}; known are {', '.join(_ROLES)}")
    parts = [content] if isinstance(content, str | Mapping) else content
    if not isinstance(parts, Sequence):
        raise _bad(f"turns[{number}] has a {type(content).__name__} as content, not text or a list of parts")
    texts: list[str | None] = []
    held: list[Picture | None] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, Mapping) and part.get("type") == "image":
            texts.append(None)
            own = part.get("image")
            held.append(part.get("path") if own is None else own)
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise _bad(f"turns[{number}] has a part of type {kind!r}; known are text and image")
    return Turn(cast(Role, role), tuple(texts)), held


def _placed(held: Sequence[Picture | None], given: Sequence[Picture]) -> Iterator[Picture]:
    """For each place its own image, or the next of the given images."""
    places = sum(own is None for own in held)
    if places != len(given):
        raise InvalidInput(
            f"the messages have {places} image placeholders, but {len(given)} images are given",
            reason="IMAGES_DO_NOT_FIT",
        )
    rest = iter(given)
    return (next(rest) if own is None else own for own in held)


def _bad(message: str) -> InvalidInput:
    return InvalidInput(message, reason="BAD_TURNS")
