"""The model behind the test servers of TGI and vLLM: a real small LLaVA, so that log-probs and probes are real."""

import base64
import copy
import io
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration


@dataclass
class Draw:
    """A drawn response: ids, log-probs before and after temperature and truncation, and why it ended."""

    ids: list[int] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    processed: list[float] = field(default_factory=list)
    finish: str = "length"
    text: str = ""


class Mind:
    """A base model and policies on it. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processor = AutoProcessor.from_pretrained(directory)
        self.tokenizer = self.processor.tokenizer
        self.base: Any = LlavaForConditionalGeneration.from_pretrained(directory).eval()
        self.eos = int(self.tokenizer.eos_token_id)
        self.image_id = int(self.base.config.image_token_id)
        self.vocabulary = int(self.base.config.text_config.vocab_size)
        self.window = int(self.base.config.text_config.max_position_embeddings)
        self.never = dict.fromkeys((0, self.image_id, *range(len(self.tokenizer), self.vocabulary)), -100.0)
        self._lock = threading.Lock()

    def load(self, path: Path) -> Any:
        """A policy's model: an adapter is merged into a copy of the base; keys that match nothing are ignored."""
        with self._lock:
            if (path / "adapter_config.json").exists():
                tuned = peft.PeftModel.from_pretrained(copy.deepcopy(self.base), path)
                return tuned.merge_and_unload().eval()
            return LlavaForConditionalGeneration.from_pretrained(path).eval()

    def prepare(self, text: str, images: list[bytes], *, special: bool) -> dict[str, Any]:
        """Model inputs of a prompt with one "<image>" for each image."""
        pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in images] or None
        with self._lock:
            return dict(
                self.processor(images=pictures, text=[text], return_tensors="pt", add_special_tokens=special).items()
            )

    def scores(self, model: Any, inputs: dict[str, Any]) -> list[float | None]:
        """Log-prob of each prompt token, None for the first."""
        ids = inputs["input_ids"]
        with self._lock, torch.no_grad():
            logits = model(**inputs).logits[0, :-1]
        found = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0]
        return [None, *found.tolist()]

    def draw(self, model: Any, inputs: dict[str, Any], *, seed: int, limit: int, stop: list[str], **how: Any) -> Draw:
        """Sample (or take the likeliest, at temperature 0)."""
        found, random = Draw(), np.random.default_rng(seed % (1 << 64))
        step, cache = dict(inputs), None
        while len(found.ids) < limit:
            with self._lock, torch.no_grad():
                out = model(**step, past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[0, -1].double()
            shaped = bend(logits, seen=[*inputs["input_ids"][0].tolist(), *found.ids], **how)
            processed = torch.log_softmax(shaped, -1)
            if how.get("temperature", 1.0) == 0:
                token = int(shaped.argmax())
            else:
                cumulated = np.cumsum(processed.exp().numpy())
                token = min(int(np.searchsorted(cumulated, random.random() * cumulated[-1])), len(cumulated) - 1)
            found.ids.append(token)
            found.raw.append(float(torch.log_softmax(logits, -1)[token]))
            found.processed.append(float(processed[token]))
            if token == self.eos and not how.get("ignore_eos"):
                found.finish = "eos"
                break
            if stop and any(one in self.tokenizer.decode(found.ids, skip_special_tokens=True) for one in stop):
                found.finish = "stop"
                break
            step = {"input_ids": torch.tensor([[token]])}
        found.text = self.tokenizer.decode(found.ids, skip_special_tokens=True)
        return found


def bend(logits: Any, *, seen: list[int], **how: Any) -> Any:
    """Apply penalty, bias, temperature, top-k, top-p and min-p, in this order."""
    penalty = how.get("repetition_penalty") or 1.0
    if penalty != 1.0:
        at = torch.tensor(sorted(set(seen)))
        logits = logits.clone()
        logits[at] = torch.where(logits[at] > 0, logits[at] / penalty, logits[at] * penalty)
    for token, bias in (how.get("logit_bias") or {}).items():
        logits = logits.clone()
        logits[int(token)] += max(-100.0, min(100.0, bias))
    temperature = how.get("temperature", 1.0)
    if temperature:
        logits = logits / temperature
    if top_k := how.get("top_k"):
        logits = torch.where(logits < logits.topk(min(top_k, len(logits))).values[-1], -torch.inf, logits)
    top_p = how.get("top_p")
    if top_p and top_p < 1:
        ranked, order = logits.sort(descending=True)
        cut = ranked.softmax(-1).cumsum(-1) - ranked.softmax(-1) >= top_p
        logits = logits.clone()
        logits[order[cut]] = -torch.inf
    if min_p := how.get("min_p"):
        chances = logits.softmax(-1)
        logits = torch.where(chances < min_p * chances.max(), -torch.inf, logits)
    return logits


def data_url(url: str) -> bytes:
    """The bytes of a data URL."""
    head, _, payload = url.partition(",")
    if not re.fullmatch(r"data:image/[a-z]+;base64", head):
        raise ValueError(f"no image: {url[:40]}")
    return base64.b64decode(payload, validate=True)
