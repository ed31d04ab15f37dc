"""Tokenises other texts as the policy would write them: chat template, tokens, end token.

It also counts how much of the model's window pictures and a prompt take.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from cachetools import LRUCache
from PIL import Image
from sightline.sampler import Turn
from sightline.sampler.turns import user_turn
from sightline_chassis.families.rendering import Rendering

from sightline_trainer.model_processor import ModelProcessor

_REMEMBERED = 4096


class ChatTemplate:
    """The model's chat template and tokenizer, loaded at first use.

    Args:
        made: the model's processor.
    """

    def __init__(self, made: ModelProcessor) -> None:
        self.made = made
        self.model = made.model
        self._pictures: LRUCache[tuple[tuple[int, int], ...], int] = LRUCache(_REMEMBERED)
        self._texts: LRUCache[str, int] = LRUCache(_REMEMBERED)
        self._lock = threading.RLock()  # an update and the next iteration's sampling use it at the same time

    @cached_property
    def _processor(self) -> Any:
        return self.made.load()

    @cached_property
    def window(self) -> int:
        """Maximum positions of the model, for picture, prompt and response together."""
        from sightline_chassis.families.auto import AutoConfig

        config = AutoConfig.from_pretrained(self.model).get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 20)

    def length(self, rendered: str, sizes: Sequence[tuple[int, int]]) -> int:
        """Number of tokens of a rendered prompt with pictures of these widths and heights, image tokens expanded."""
        with self._lock:
            return self._tokens(rendered) + self._spread(tuple(sizes))

    def _spread(self, sizes: tuple[tuple[int, int], ...]) -> int:
        """Number of tokens that pictures have beyond their placeholders. Counted together, since some processors cut
        several pictures into fewer pieces."""
        if sizes not in self._pictures:
            asked, blanks = self.prompt(user_turn("?", len(sizes))), [Image.new("RGB", size) for size in sizes]
            shown: list[Any] = blanks if len(blanks) == 1 else [blanks]  # as in one prompt
            whole = self._processor(images=shown, text=[asked], **self._begun(asked)).input_ids[0]
            self._pictures[sizes] = len(whole) - self._tokens(asked)
        return self._pictures[sizes]

    def _tokens(self, rendered: str) -> int:
        if rendered not in self._texts:
            self._texts[rendered] = len(self._processor.tokenizer(rendered, **self._begun(rendered)).input_ids)
        return self._texts[rendered]

    def _begun(self, rendered: str) -> dict[str, bool]:
        """As in the sampler: if the template writes the begin token, no second one is added."""
        bos = self._processor.tokenizer.bos_token
        return {"add_special_tokens": not (bos and rendered.startswith(bos))}

    @cached_property
    def _render(self) -> Rendering:
        return Rendering(self._processor)

    def prompt(self, turns: Sequence[Turn]) -> str:
        """A conversation rendered by the chat template, ready for the answer, as the sampler renders it.

        Raises:
            InvalidInput: the template refuses it, or omits something.
        """
        with self._lock:
            return self._render(turns)

    def places(self, rendered: str) -> int | None:
        """Number of image places in a rendered prompt; None if the template marks none."""
        with self._lock:
            return self._render.places(rendered)

    def response(self, turns: Sequence[Turn], text: str) -> list[int]:
        """Token ids of `text` as the answer to a conversation, the end token included.

        The text is tokenised after its prompt, since some tokenizers split it differently alone.
        """
        with self._lock:
            return self._response(turns, text)

    def _response(self, turns: Sequence[Turn], text: str) -> list[int]:
        tokenizer = self._processor.tokenizer
        before = self.prompt(turns)
        whole = self._render.written([*turns, Turn("assistant", (text,))], answered=True)
        tail = whole.removeprefix(before) if whole.startswith(before) else f" {text}"
        tail = tail[: tail.rindex(text) + len(text)] if text in tail else f" {text}"
        head = tokenizer(before, add_special_tokens=False).input_ids
        ids = tokenizer(before + tail, add_special_tokens=False).input_ids
        joined = ids[: len(head)] != head  # a tokenizer that merges across the boundary
        answer = tokenizer(tail, add_special_tokens=False).input_ids if joined else ids[len(head) :]
        return [*(int(token) for token in answer), self.end]

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's token ids, without special tokens."""
        with self._lock:
            return str(self._processor.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return int(self._processor.tokenizer.eos_token_id)
