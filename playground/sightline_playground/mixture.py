"""VILA's three findings as choices of the LVLM's training (Lin et al., CVPR 2024, arXiv 2312.07533).

VILA studies how a language model becomes a vision-language model. It finds:

- The language model must be trained on pictures too. If it is frozen, only the projector learns, and in-context
  learning fails.
- Documents in which pictures and texts alternate teach more than pairs alone.
- Some steps on text without pictures keep the language skill that training on pictures loses.

Here the language model is a Llama that first reads captions without pictures (`text_steps`). What differs: the text
describes the same world instead of giving instructions. A document has two pictures, each with its request and answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from sightline_playground import llava_model
from sightline_playground.tokens import BOS, EOS

if TYPE_CHECKING:
    import torch

IGNORE: Final = -100
PICTURES: Final = 2
"""Pictures of a document."""

Form = Literal["pairs", "documents", "text"]


@dataclass(frozen=True)
class Mixture:
    """What is trained, and on what. The defaults are the shipped LVLM's: Llama and projector from scratch, on pairs."""

    text_steps: int = 0
    """First steps, on captions without pictures: they make the initial language model."""
    freeze: bool = False
    """Whether the Llama stays as it is after `text_steps`, and only the projector learns."""
    documents: float = 0.0
    """Share of the steps with pictures whose rows are documents of two pictures."""
    text: float = 0.0
    """Share of the later steps that train on captions without pictures."""

    def __post_init__(self) -> None:
        if self.freeze and not self.text_steps:
            raise ValueError("--freeze-llm would freeze an untrained Llama: set --text-steps above 0 too")
        for name, option in (("documents", "--interleaved"), ("text", "--text-only")):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{option} is {getattr(self, name):g}: give a share from 0 to 1")

    def form(self, rng: random.Random) -> Form:
        """The form of a step's rows."""
        if self.text and rng.random() < self.text:
            return "text"
        return "documents" if self.documents and rng.random() < self.documents else "pairs"


def language(model: Any) -> list[Any]:
    """The parameters of the language model: embeddings, Llama and head."""
    return [*model.model.language_model.parameters(), *model.lm_head.parameters()]


def documents(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, labels) of rows of `PICTURES` neighbouring (prompt, answer) pairs, (B / PICTURES, L), padded on the right.

    Labels are on every answer; the pictures come in the order of the pairs.
    """
    rows = []
    for first in range(0, len(pairs), PICTURES):
        ids, labels = [tokenizer.bos_token_id], [IGNORE]
        for prompt, answer in pairs[first : first + PICTURES]:
            head = _ids(tokenizer, f"USER: {'<image>' * llava_model.PATCHES}\n{prompt} ASSISTANT:")
            tail = _ids(tokenizer, f" {answer}{EOS}")
            ids += head + tail
            labels += [IGNORE] * len(head) + tail
        rows.append((ids, labels))
    return _padded(tokenizer, rows)


def texts(tokenizer: Any, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, labels) of captions without pictures or prompts, both (B, L), padded on the right."""
    rows = [_ids(tokenizer, f"{BOS} {caption}{EOS}") for caption in captions]
    return _padded(tokenizer, [(ids, [IGNORE, *ids[1:]]) for ids in rows])


def text_loss(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy per token of texts, in nats; ids and labels (B, L), padded on the right."""
    from torch.nn import functional as F

    embeddings = model.get_input_embeddings()(ids)
    hidden = model.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    chosen = wanted != IGNORE
    return F.cross_entropy(model.lm_head(hidden[chosen]), wanted[chosen])


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return found


def _padded(tokenizer: Any, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    longest = max(len(ids) for ids, _ in rows)
    return (
        torch.tensor([ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in rows]),
        torch.tensor([labels + [IGNORE] * (longest - len(labels)) for _, labels in rows]),
    )
