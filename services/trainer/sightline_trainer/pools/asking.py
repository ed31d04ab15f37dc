"""What a row asks (a text or a conversation), its images, and the answer if that comes last.

A conversation is a list of messages, as in TRL's `prompt` and in the `messages` of chat datasets: its last turn is the
user's, or the assistant's answer to it, which is then the reference. Messages mark the images' places by parts of type
image or, in texts, by LLaVA's `<image>`; without marks, images come before the first user's text, as in TRL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sightline.sampler import Turn
from sightline.sampler.turns import conversation

PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class RowAsks:
    """What a row asks.

    Attributes:
        text: the user's text to answer; of any type if the row has no text, which the gate reports.
        turns: the whole conversation, if it is more than the images followed by the text.
        images: the row's images, in the order of their places.
        answer: the assistant's turn after the text; "" if there is none.
    """

    text: Any
    turns: tuple[Turn, ...]
    images: list[Any]
    answer: str = ""


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages with roles."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(message, Mapping) and "role" in message for message in value)
    )


def asks(messages: Sequence[Any], images: Sequence[Any]) -> RowAsks:
    """The question that messages with roles ask about a row's images.

    Raises:
        InvalidInput: they do not end with a user's text or an answer to one, or they have places for more or fewer
            images.
    """
    *before, last = messages
    answer = ""
    if last.get("role") == "assistant":
        messages, answer = before, _text(last)
    if images:
        messages = _split(messages)
    pictures, turns = conversation(list(images), list(messages))
    only = len(turns) == 1 and turns[0].content == (*[None] * len(pictures), turns[0].text)
    return RowAsks(turns[-1].text, () if only else turns, pictures, answer)


def has_places(message: Mapping[str, Any]) -> bool:
    """Whether a message marks the images' places itself."""
    content = message.get("content")
    if isinstance(content, str):
        return PLACEHOLDER in content
    return isinstance(content, list | tuple) and any(
        isinstance(part, Mapping) and part.get("type") == "image" for part in content
    )


def _split(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The same messages, with `<image>` in users' texts as places."""
    return [
        {**message, "content": placed(message["content"])}
        if message.get("role") == "user" and isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def placed(text: str) -> list[dict[str, Any]]:
    """The parts of a text in which `<image>` marks images. A single one is moved to the front, as in LLaVA's code."""
    if text.count(PLACEHOLDER) == 1:
        text = PLACEHOLDER + text.replace(PLACEHOLDER, "").strip()
    first, *rest = text.split(PLACEHOLDER)
    parts: list[dict[str, Any]] = [{"type": "text", "text": first.strip("\n")}] if first.strip() else []
    for piece in rest:
        parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip("\n")})
    return parts


def _text(message: Mapping[str, Any]) -> str:
    """The text of a message, or ""."""
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return "\n".join(text for text in texts if isinstance(text, str))
