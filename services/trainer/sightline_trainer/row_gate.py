"""RowGate: the one rule for every text and picture that a run asks about or learns from, sampled or not.

A text must be text, encodable, hold no special token or placeholder of the model, and fit its window after picture and
prompt; a picture must exist and decode. A failure concerns one row, never the run: the caller leaves the row out, names
it and counts it (`dropped`).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
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
Size = tuple[int, int]


def text_fault(text: object, what: str, words: ModelWords | None = None) -> Checked:
    """Why a text can't be used, or None.

    Args:
        what: prompt, reference or candidate; the reason begins with it.
        words: the model's special tokens, if known.
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
            f"the {what} holds {token!r}, which is not text to the model: the chat template writes such tokens, and "
            "sets the picture's place",
        )
    return None


class RowGate:
    """The gate of one model. Texts and pictures are checked without torch; lengths by the model's own processor.

    Args:
        made: the model's processor.
        limits: limits of pictures, as in the update.
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
        """Check a whole row: its texts, its picture, and whether both fit the window; None if it passes.

        Raises:
            PreconditionFailed: MODEL_UNREADABLE: the model has no tokenizer or processor.
        """
        return self.texts(row) or self.images(row) or self.fits(row)

    def asked(self, row: Prompt) -> Checked:
        """Check a question: the prompt, with earlier turns, and its pictures. The sampler checks the length."""
        return self._said(row) or self.images(row)

    def texts(self, row: Prompt) -> Checked:
        """Check the prompt, with earlier turns, and the reference if there is one."""
        return self._said(row) or (self.text(row.reference, "reference") if row.reference else None)

    def _said(self, row: Prompt) -> Checked:
        texts = [part for turn in row.turns for part in turn.content if part and part.strip()]
        return self.text(row.prompt, "prompt") or _first(self.text(text, "prompt") for text in texts)

    def images(self, row: Prompt) -> Checked:
        """Check all pictures of a row."""
        return _first(self.image(image) for image in row.images)

    def text(self, text: object, what: str) -> Checked:
        """Check one text; see `text_fault`."""
        return text_fault(text, what, self.words)

    def image(self, image: Path | bytes) -> Checked:
        """Check one picture, a file or its bytes: it is read and decoded."""
        seen = self._image(image)
        return seen if isinstance(seen, Refusal) else None

    def fits(self, row: Prompt) -> Checked:
        """Check that the row's reference, or one token, fits after its picture and prompt."""
        sizes = self._sizes(row.images)
        if isinstance(sizes, Refusal):
            return sizes
        try:
            rendered = self.template.prompt(row.asked())
        except InvalidInput as error:
            return Refusal(error.reason, error.message)
        if fault := self._fits(rendered, sizes, 1, "prompt"):
            return fault
        if not row.reference:
            return None
        return self._fits(rendered, sizes, len(self.template.response(row.asked(), row.reference)), "reference")

    def length(self, row: Prompt) -> int:
        """Number of tokens of a valid row: its pictures and its prompt, as the model takes them."""
        sizes = self._sizes(row.images)
        assert not isinstance(sizes, Refusal)
        return self.template.length(self.template.prompt(row.asked()), sizes)

    def tokenised(self, prompt: Prompt, asked: str, text: str) -> tuple[list[int], Checked]:
        """Token ids of a text that no policy sampled, as an answer to `asked`, or why it can't be used."""
        if fault := self.text(asked, "prompt") or self.text(text, "candidate"):
            return [], fault
        sizes, turns = self._sizes(prompt.images), prompt.asked(asked)
        if isinstance(sizes, Refusal):
            return [], sizes
        try:
            ids = self.template.response(turns, text)
        except InvalidInput as error:
            return [], Refusal(error.reason, error.message)
        return ids, self._fits(self.template.prompt(turns), sizes, len(ids), "candidate")

    def candidate(self, response: Response) -> Checked:
        """Check a candidate from any source: its text, and its tokens, of which only the last may be special."""
        if not response.token_ids:
            return Refusal("CANDIDATE_EMPTY", "the candidate has no token")
        # One end token alone is an answer without words; filters judge that.
        fault = self.text(response.text, "candidate") if response.text.strip() else None
        if response.statement:
            fault = fault or text_fault(response.statement, "statement")
        return fault or self._tokens(response.token_ids, "candidate")

    def rendered(self, prompt: Prompt, response: Response) -> None:
        """Check that a sampler rendered the prompt by the recipe's chat template, if it has one.

        Raises:
            PreconditionFailed: CHAT_TEMPLATE_DIFFERS.
        """
        if self.template.made.chat_template is None or not response.rendered_prompt:
            return
        if response.rendered_prompt != (ours := self.template.prompt(prompt.asked(response.prompt))):
            raise PreconditionFailed(
                f"the sampler renders the prompt as {response.rendered_prompt[:120]!r}, and the recipe's chat_template "
                f"as {ours[:120]!r}; start the sampler with that template (engine.chat_template), or leave it out",
                reason="CHAT_TEMPLATE_DIFFERS",
            )

    def pair(self, row: Mapping[str, Any]) -> Checked:
        """Check a row of pairs.parquet: all its texts, tokens and pictures; images are encoded."""
        try:
            said = [turn["content"] for turn in row["prompt"]]
            sides = {side: (row[side][0]["content"], row[f"{side}_ids"]) for side in ("chosen", "rejected")}
            shown = {side: row.get(f"{side}_images") or row["images"] for side in sides}
            texts = [text for text in said[:-1] if not isinstance(text, str) or text.strip()]
            fault = _first(self.text(text, "prompt") for text in [said[-1], *texts])
            fault = fault or text_fault(row["rendered_prompt"], "prompt")
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
        contents = [image["bytes"] for image in images]
        if not contents or None in contents:
            which = "a picture" if contents else "the picture"
            return Refusal("IMAGE_MISSING", f"{which} of the {side} side is null or missing")
        places = self.template.places(row["rendered_prompt"])
        if places not in (None, len(contents)):
            return Refusal(
                "IMAGES_DO_NOT_FIT", f"the {side} side has {len(contents)} pictures, and its prompt {places} places"
            )
        sizes = self._sizes(contents)
        if isinstance(sizes, Refusal):
            return sizes
        if not ids:
            return Refusal(f"{side.upper()}_EMPTY", f"the {side} side has no token")
        return self._tokens(ids, side) or self._fits(row["rendered_prompt"], sizes, len(ids), side)

    def _tokens(self, ids: Sequence[int], what: str) -> Checked:
        words = self.words
        found = next((id_ for id_ in ids[:-1] if id_ in words.ids), None)
        found = ids[-1] if found is None and ids[-1] in words.pictures else found
        if found is None:
            return None
        return Refusal(f"{what.upper()}_SPECIAL_TOKEN", f"the {what} has the special token {found}, which is not text")

    def _fits(self, rendered: str, sizes: Sequence[Size], tokens: int, what: str) -> Checked:
        try:
            window, before = self.template.window, self.template.length(rendered, sizes)
        except (ValueError, RuntimeError) as error:  # such as Qwen's for a picture of 1 x 990
            named = " and ".join(f"{width} x {height}" for width, height in sizes)
            why = f"the model's processor refuses a picture of {named} pixels: {str(error)[:200]}"
            return Refusal("IMAGE_REFUSED", why)
        if before + tokens <= window:
            return None
        return Refusal(
            f"{what.upper()}_TOO_LONG",
            f"picture and prompt have {before} tokens and the {what} {tokens}, over the model's window of {window}"
            if what != "prompt"
            else f"picture and prompt have {before} tokens, and the model's window is {window}",
        )

    def _sizes(self, images: Sequence[Path | bytes]) -> list[Size] | Refusal:
        """Width and height of each picture, or what is wrong with the first bad one."""
        sizes: list[Size] = []
        for image in images:
            size = self._image(image)
            if isinstance(size, Refusal):
                return size
            sizes.append(size)
        return sizes

    def _image(self, image: Path | bytes) -> Size | Refusal:
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


def _first(faults: Iterable[Checked]) -> Checked:
    return next((fault for fault in faults if fault is not None), None)
