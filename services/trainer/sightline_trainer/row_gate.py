"""RowGate: the one rule for every text and every picture that a run asks about or learns from, sampled or not.

A text must be text, encodable, hold no special token or placeholder of the model, and fit its window behind picture and
prompt; a picture must be there and decode. What does not pass is one row's fault and never the run's: whoever asks
leaves the row out, names it and counts it (`dropped`).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from cachetools import LRUCache
from sightline.errors import InvalidInput, PreconditionFailed
from sightline.pictures import image_bytes
from sightline_chassis.images import decode
from sightline_chassis.sections import ImageLimits

from sightline_trainer.chat_template import ChatTemplate
from sightline_trainer.model_processor import ModelProcessor
from sightline_trainer.model_words import ModelWords
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.refusal import Refusal
from sightline_trainer.records.response import Response

_REMEMBERED = 4096


Checked = Refusal | None


def text_fault(text: object, what: str, words: ModelWords | None = None) -> Checked:
    """Why a text can't be used, or None.

    Args:
        what: prompt, reference, candidate: the reason begins with it.
        words: of the model, where it is known.
    """
    kind = what.upper()
    if not isinstance(text, str):
        return Refusal(
            f"{kind}_NO_TEXT",
            f"the {what} is {str(text)[:40]!r} ({type(text).__name__}); prompts and answers must be texts",
        )
    if not text.strip():
        return Refusal(f"{kind}_EMPTY", f"the {what} is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Refusal(
            f"{kind}_HALF_CHARACTER",
            f"the {what} holds half of a character (a lone surrogate, at {error.start}), as of an emoji that was cut",
        )
    token = words.found_in(text) if words else None
    if token:
        return Refusal(
            f"{kind}_SPECIAL_TOKEN",
            f"the {what} holds {token!r}, which is no text to the model: the chat template writes such tokens, and "
            "sets the picture's place",
        )
    return None


class RowGate:
    """The gate of one model. Texts and pictures are checked without torch; lengths by the model's own processor.

    Args:
        made: the model's processor.
        limits: of pictures, as the update reads them.
    """

    def __init__(self, made: ModelProcessor, limits: ImageLimits | None = None) -> None:
        self.template = ChatTemplate(made)
        self.limits = limits or ImageLimits()
        self._seen: LRUCache[bytes, tuple[int, int]] = LRUCache(_REMEMBERED)
        self._lock = threading.Lock()

    @cached_property
    def words(self) -> ModelWords:
        """The model's special tokens.

        Raises:
            PreconditionFailed: MODEL_UNREADABLE.
        """
        return ModelWords.read(self.template.model)

    def check(self, row: Prompt) -> Checked:
        """All of a row: its texts, its picture, and whether both fit the window; None where it passes.

        Raises:
            PreconditionFailed: MODEL_UNREADABLE, the model has no tokenizer or processor.
        """
        return self.texts(row) or self.image(row.image) or self.fits(row)

    def asked(self, row: Prompt) -> Checked:
        """What a run asks: the prompt and its picture. The length is the sampler's to tell."""
        return self.text(row.prompt, "prompt") or self.image(row.image)

    def texts(self, row: Prompt) -> Checked:
        """The prompt, and the reference where there is one."""
        return self.text(row.prompt, "prompt") or (self.text(row.reference, "reference") if row.reference else None)

    def text(self, text: object, what: str) -> Checked:
        """One text; see `text_fault`."""
        return text_fault(text, what, self.words)

    def image(self, image: Path | bytes) -> Checked:
        """One picture, a file or its bytes: it is read and decoded."""
        seen = self._image(image)
        return seen if isinstance(seen, Refusal) else None

    def fits(self, row: Prompt) -> Checked:
        """Whether the row's reference, or one token, has room behind its picture and prompt."""
        size = self._image(row.image)
        if isinstance(size, Refusal):
            return size
        rendered = self.template.prompt(row.prompt)
        if fault := self._fits(rendered, size, 1, "prompt"):
            return fault
        if not row.reference:
            return None
        return self._fits(rendered, size, len(self.template.response(row.prompt, row.reference)), "reference")

    def length(self, row: Prompt) -> int:
        """Tokens of a row that passes: its picture and its prompt, as the model takes them."""
        size = self._image(row.image)
        assert not isinstance(size, Refusal)
        return self.template.length(self.template.prompt(row.prompt), size)

    def tokenised(self, prompt: Prompt, asked: str, text: str) -> tuple[list[int], Checked]:
        """Token ids of a text that no policy sampled, as an answer to `asked`, or why it can't be one."""
        if fault := self.text(asked, "prompt") or self.text(text, "candidate"):
            return [], fault
        size = self._image(prompt.image)
        if isinstance(size, Refusal):
            return [], size
        ids = self.template.response(asked, text)
        return ids, self._fits(self.template.prompt(asked), size, len(ids), "candidate")

    def candidate(self, response: Response) -> Checked:
        """A candidate, whoever made it: its text, and its tokens, which may be special at their end only."""
        if not response.token_ids:
            return Refusal("CANDIDATE_EMPTY", "the candidate has no token")
        # One end token alone is an answer without words; filters judge that.
        fault = self.text(response.text, "candidate") if response.text.strip() else None
        if response.statement:
            fault = fault or text_fault(response.statement, "statement")
        return fault or self._tokens(response.token_ids, "candidate")

    def rendered(self, response: Response) -> None:
        """See that a sampler rendered the prompt by the recipe's chat template, where it has one.

        Raises:
            PreconditionFailed: CHAT_TEMPLATE_DIFFERS.
        """
        if self.template.made.chat_template is None or not response.rendered_prompt:
            return
        if response.rendered_prompt != (ours := self.template.prompt(response.prompt)):
            raise PreconditionFailed(
                f"the sampler renders the prompt as {response.rendered_prompt[:120]!r}, and the recipe's chat_template "
                f"as {ours[:120]!r}; start the sampler with that template (engine.chat_template), or leave it out",
                reason="CHAT_TEMPLATE_DIFFERS",
            )

    def pair(self, row: Mapping[str, Any]) -> Checked:
        """A row of pairs.parquet, all its texts, tokens and pictures; images are encoded."""
        try:
            prompt = row["prompt"][0]["content"]
            sides = {side: (row[side][0]["content"], row[f"{side}_ids"]) for side in ("chosen", "rejected")}
            shown = {side: row.get(f"{side}_images") or row["images"] for side in sides}
            fault = self.text(prompt, "prompt") or text_fault(row["rendered_prompt"], "prompt")
            for side, (text, ids) in sides.items():
                fault = (
                    fault
                    or (self.text(text, side) if text.strip() else None)
                    or self._side(row, ids, shown[side], side)
                )
            if own := row.get("own_ids"):
                fault = fault or self._side(row, own, row["images"], "own")
        except (LookupError, TypeError, AttributeError) as error:
            return Refusal("PAIR_INCOMPLETE", f"the pair lacks something: {type(error).__name__}: {error}")
        return fault

    def _side(self, row: Mapping[str, Any], ids: Sequence[int], images: Sequence[Any], side: str) -> Checked:
        if len(images) != 1:
            return Refusal("IMAGE_NOT_ONE", f"the {side} side has {len(images)} pictures; one is wanted")
        content = images[0]["bytes"]
        if content is None:
            return Refusal("IMAGE_MISSING", f"the picture of the {side} side is null")
        size = self._image(content)
        if isinstance(size, Refusal):
            return size
        if not ids:
            return Refusal(f"{side.upper()}_EMPTY", f"the {side} side has no token")
        return self._tokens(ids, side) or self._fits(row["rendered_prompt"], size, len(ids), side)

    def _tokens(self, ids: Sequence[int], what: str) -> Checked:
        words = self.words
        found = next((id_ for id_ in ids[:-1] if id_ in words.ids), None)
        found = ids[-1] if found is None and ids[-1] in words.pictures else found
        if found is None:
            return None
        return Refusal(
            f"{what.upper()}_SPECIAL_TOKEN", f"the {what} has the special token {found}, which is no text and no end"
        )

    def _fits(self, rendered: str, size: tuple[int, int], tokens: int, what: str) -> Checked:
        try:
            window, before = self.template.window, self.template.length(rendered, size)
        except (ValueError, RuntimeError) as error:  # as Qwen's of a picture of 1 x 990
            why = f"the model's processor refuses a picture of {size[0]} x {size[1]} pixels: {str(error)[:200]}"
            return Refusal("IMAGE_REFUSED", why)
        if before + tokens <= window:
            return None
        return Refusal(
            f"{what.upper()}_TOO_LONG",
            f"picture and prompt have {before} tokens and the {what} {tokens}, over the model's window of {window}"
            if what != "prompt"
            else f"picture and prompt have {before} tokens, and the model's window is {window}",
        )

    def _image(self, image: Path | bytes) -> tuple[int, int] | Refusal:
        """Width and height."""
        try:
            content = image if isinstance(image, bytes) else image_bytes(image)
            digest = hashlib.sha256(content).digest()
            with self._lock:
                size = self._seen.get(digest)
            if size is None:
                size = decode(content, self.limits).size
                with self._lock:
                    self._seen[digest] = size
            return size
        except InvalidInput as error:
            return Refusal(error.reason, error.message)
