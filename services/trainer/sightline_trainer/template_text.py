"""A recipe's chat template, given as text or as the name of a file beside the recipe.

A run's recipe.yaml contains the text, so that the run, its update on any machine and later readers have it.
"""

from __future__ import annotations

from pathlib import Path

from sightline_chassis.settings import SettingsError

MOST_CHARACTERS = 200_000


def is_template(value: str) -> bool:
    """Whether it is a template itself, not a file name."""
    return "{{" in value or "{%" in value


def template_text(value: str | None, beside: Path, *, files: bool) -> str | None:
    """The template of a recipe; None if it has none.

    Args:
        value: Jinja text, or a file relative to the recipe's directory or to the current directory.
        beside: the recipe's directory.
        files: whether a file may be read; False for callers of the service.

    Raises:
        SettingsError: the file does not exist, holds no template, or may not be read.
    """
    if value is None or is_template(value):
        return value
    if not files:
        raise SettingsError(
            "chat_template names a file; in a recipe sent to a trainer, give the template's text (chat_template: |)"
        )
    place = Path(value).expanduser()
    found = next((file for file in (beside / place, place) if file.is_file()), None)
    if found is None:
        raise SettingsError(f"chat_template: there is no file {value} beside the recipe or here")
    try:
        text = found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"chat_template: {found} can't be read: {error}") from None
    if not is_template(text) or len(text) > MOST_CHARACTERS:
        raise SettingsError(f"chat_template: {found} holds no Jinja template of at most {MOST_CHARACTERS} characters")
    return text
