"""Texts that a message can carry."""

from __future__ import annotations

from sightline.errors import InvalidInput


def checked_text(text: object, name: str = "a text") -> str:
    """The text. Raises InvalidInput if protobuf cannot carry it."""
    if not isinstance(text, str):
        raise InvalidInput(f"{name} is a {type(text).__name__}, not a string", reason="TEXT_NOT_A_STRING")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(
            f"{name} holds half of a surrogate pair, which is not a Unicode text", reason="TEXT_NOT_UNICODE"
        ) from None
    return text
