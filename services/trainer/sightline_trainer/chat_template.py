"""ChatTemplate: texts that the policy did not sample, as it would have written them: template, tokens, end token."""

from __future__ import annotations

from functools import cached_property
from typing import Any


class ChatTemplate:
    """The model's chat template and tokenizer; loaded when first asked.

    Args:
        model: the base LVLM, a Hugging Face folder or name.
    """

    def __init__(self, model: str) -> None:
        self.model = model

    @cached_property
    def _processor(self) -> Any:
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self.model)

    def prompt(self, text: str) -> str:
        """The user's text with an image, after the chat template: what the sampler renders too."""
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return str(
            self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        )

    def response(self, prompt: str, text: str) -> list[int]:
        """Token ids of `text` as the answer to the user's text `prompt`, the end token included.

        The text is tokenised where it stands, behind its prompt: alone, some tokenizers begin it otherwise.
        """
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
