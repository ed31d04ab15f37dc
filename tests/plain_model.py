"""A model as transformers runs it, without our code: the reference for log-probs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

# Token types of a response, for models that distinguish them from the prompt's; 0 for others.
_RESPONSE_TYPES = {"paligemma": 1}


class Plain:
    """A checkpoint of a family in float32, and its processor, with a chat template if it has none."""

    def __init__(self, directory: Path, family: str, template: str | None = None) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
        self.processor: Any = AutoProcessor.from_pretrained(directory)
        self._type = _RESPONSE_TYPES.get(family, 0)
        if template:
            self.processor.chat_template = template

    def rendered(self, question: str | list[dict[str, Any]], *, image: bool = True) -> str:
        """A question about an image, or messages, rendered by the chat template."""
        content: list[dict[str, str]] = [{"type": "image"}] if image else []
        asked = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        messages = asked if isinstance(question, str) else question
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def call(self, rendered: str, image: bytes | list[bytes] | None) -> dict[str, Any]:
        """Call the processor once, with one image, several or none."""
        bos = self.processor.tokenizer.bos_token
        files = [] if image is None else image if isinstance(image, list) else [image]
        pictures: list[Any] = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        # Of a prompt with several, as apply_chat_template hands them over.
        shown = {"images": pictures if len(files) == 1 else [pictures]} if files else {}
        begun = bool(bos) and rendered.startswith(bos)
        call = dict(self.processor(text=[rendered], return_tensors="pt", add_special_tokens=not begun, **shown))
        call.pop("labels", None)
        return call

    @torch.no_grad()
    def logprobs(self, image: bytes | list[bytes], question: str | list[dict[str, Any]], response: Any) -> np.ndarray:
        """Log-probs of each token of a response, by one forward pass of prompt and response."""
        call = self.call(self.rendered(question), image)
        length, ids = call["input_ids"].shape[1], torch.tensor([list(response)])
        more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in call:
                call[name] = torch.cat([call[name], more.get(name, torch.full_like(ids, self._type))], dim=1)
        for core in (self.model, self.model.model):
            if hasattr(core, "rope_deltas"):
                core.rope_deltas = None
        logits = self.model(**call).logits[0, length - 1 : -1].double()
        found: np.ndarray = torch.log_softmax(logits, dim=-1).gather(1, ids.T)[:, 0].numpy()
        return found
