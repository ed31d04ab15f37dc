"""Placeholders: words of a model's vocabulary that stand for an image, which a user's text may not spell."""

from __future__ import annotations

from collections.abc import Iterable

from sightline.errors import InvalidInput


def refuse_placeholders(text: str, placeholders: Iterable[str]) -> None:
    """Refuse a user's text that would be taken for an image.

    Raises:
        InvalidInput: the text holds one of the placeholders.
    """
    for token in placeholders:
        if token in text:
            raise InvalidInput(
                f"the prompt holds {token!r}, which stands for an image: leave it out, the image's place is set "
                "by the chat template",
                reason="PROMPT_HAS_PLACEHOLDER",
            )
