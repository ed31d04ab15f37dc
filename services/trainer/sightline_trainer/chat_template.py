"""ChatTemplate: texts that the policy did not sample, as it would have written them: template, tokens, end token.

It also knows how much of the model's window a picture and a prompt take.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

from cachetools import LRUCache
from PIL import Image

from sightline_trainer.model_processor import ModelProcessor

_REMEMBERED = 4096


class ChatTemplate:
    """The model's chat template and tokenizer; loaded when first asked.

    Args:
        made: the model's processor.
    """

    def __init__(self, made: ModelProcessor) -> None:
        self.made = made
        self.model = made.model
        self._pictures: LRUCache[tuple[int, int], int] = LRUCache(_REMEMBERED)
        self._texts: LRUCache[str, int] = LRUCache(_REMEMBERED)
        self._lock = threading.RLock()  # an update and the next iteration's sampling ask at the same time

    @cached_property
    def _processor(self) -> Any:
        return self.made.load()

    @cached_property
    def window(self) -> int:
        """Most positions that the model takes, picture, prompt and response together."""
        from sightline_chassis.families.auto import AutoConfig

        config = AutoConfig.from_pretrained(self.model).get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 20)

    def length(self, rendered: str, size: tuple[int, int]) -> int:
        """Tokens of a rendered prompt with one picture of this width and height, spread out as the model takes it."""
        with self._lock:
            if size not in self._pictures:
                asked, blank = self.prompt("?"), Image.new("RGB", size)
                whole = self._processor(images=[blank], text=[asked], **self._begun(asked)).input_ids[0]
                self._pictures[size] = len(whole) - self._tokens(asked)
            return self._tokens(rendered) + self._pictures[size]

    def _tokens(self, rendered: str) -> int:
        if rendered not in self._texts:
            self._texts[rendered] = len(self._processor.tokenizer(rendered, **self._begun(rendered)).input_ids)
        return self._texts[rendered]

    def _begun(self, rendered: str) -> dict[str, bool]:
        """As the sampler does: a template that writes the begin token itself gets no second one."""
        bos = self._processor.tokenizer.bos_token
        return {"add_special_tokens": not (bos and rendered.startswith(bos))}

    def prompt(self, text: str) -> str:
        """The user's text with an image, after the chat template: what the sampler renders too."""
        content = [{"type": "image"}, {"type": "text", "text": text}]
        with self._lock:
            return str(
                self._processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
                )
            )

    def response(self, prompt: str, text: str) -> list[int]:
        """Token ids of `text` as the answer to the user's text `prompt`, the end token included.

        The text is tokenised where it stands, behind its prompt: alone, some tokenizers begin it otherwise.
        """
        with self._lock:
            return self._response(prompt, text)

    def _response(self, prompt: str, text: str) -> list[int]:
        tokenizer = self._processor.tokenizer
        before = self.prompt(prompt)
        whole = str(
            self._processor.apply_chat_template(
                [
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]},
                    {"role": "assistant", "content": [{"type": "text", "text": text}]},
                ],
                tokenize=False,
            )
        )
        tail = whole.removeprefix(before) if whole.startswith(before) else f" {text}"
        tail = tail[: tail.rindex(text) + len(text)] if text in tail else f" {text}"
        head = tokenizer(before, add_special_tokens=False).input_ids
        ids = tokenizer(before + tail, add_special_tokens=False).input_ids
        joined = ids[: len(head)] != head  # a tokenizer that joins over the border
        answer = tokenizer(tail, add_special_tokens=False).input_ids if joined else ids[len(head) :]
        return [int(token) for token in answer] + [int(tokenizer.eos_token_id)]
