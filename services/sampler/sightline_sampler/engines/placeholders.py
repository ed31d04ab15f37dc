"""Placeholders and other special tokens: words of a vocabulary that are not text, which users may not write."""

from __future__ import annotations

from collections.abc import Iterable

from sightline.errors import InvalidInput


def refuse_placeholders(text: str, placeholders: Iterable[str]) -> None:
    """Refuse a user's text that would be read as an image.

    Raises:
        InvalidInput: the text contains a placeholder.
    """
    for token in placeholders:
        if token in text:
            raise InvalidInput(
                f"the prompt holds {token!r}, which stands for an image: leave it out, the image's place is set "
                "by the chat template",
                reason="PROMPT_HAS_PLACEHOLDER",
            )


def refuse_special(text: str, special: Iterable[str]) -> None:
    """Refuse a user's text that the tokenizer would end, or read as another turn, in the middle.

    Raises:
        InvalidInput: the text contains a special token.
    """
    for token in special:
        if token in text:
            raise InvalidInput(
                f"the prompt holds {token!r}, which is not text to the model: leave it out, the chat template writes "
                "what the model needs",
                reason="PROMPT_HAS_SPECIAL_TOKEN",
            )


def spelled(tokens: Iterable[object]) -> tuple[str, ...]:
    """The tokens that differ from words, since a special token of letters only may appear in any text."""
    return tuple(
        sorted({token for token in tokens if isinstance(token, str) and len(token) > 2 and not token.isalnum()})
    )
