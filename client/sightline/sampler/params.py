"""Sampling parameters."""

from __future__ import annotations

import dataclasses

from sightline.sampler.types import Beams, Distortion, Guidance


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are sampled.

    Applied in this order: guidance, repetition penalty, suppression of forbidden tokens, temperature, top-k, top-p,
    min-p; the order of transformers' `generate`.

    Attributes:
        temperature: softmax temperature; 0 is greedy.
        top_p: nucleus in (0, 1]; 1 keeps all.
        top_k: keep the k most likely tokens; 0 keeps all.
        max_tokens: maximum tokens of a candidate, the end token included; None means the engine's maximum.
        min_p: keep tokens with at least this share of the most likely token's probability; 0 keeps all.
        repetition_penalty: for tokens of the prompt and of the candidate so far, positive logits are divided by this
            and others multiplied (Keskar et al., arXiv 1909.05858, as in transformers); 1 is none.
        stop: a candidate ends when its text contains one of these.
        beams: diverse group beam search instead of sampling.
        distortion: how the image is distorted.
        guidance: a second forward pass that changes the logits.
        continue_from: token ids that the response begins with; candidates continue after them.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    beams: Beams | None = None
    distortion: Distortion | None = None
    guidance: Guidance | None = None
    continue_from: tuple[int, ...] = ()

    def options(self) -> frozenset[str]:
        """The requested options that an engine may not support, by field name."""
        plain = SamplingParams()
        return frozenset(name for name in OPTIONS if getattr(self, name) != getattr(plain, name))


OPTIONS = frozenset(
    {"top_k", "min_p", "repetition_penalty", "stop", "beams", "distortion", "guidance", "continue_from"}
)
"""Fields of `SamplingParams` that an engine may not support; its capabilities name those that it does."""
