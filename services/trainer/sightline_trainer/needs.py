"""Needs: the largest requests that a recipe makes, for the limits of its services."""

from __future__ import annotations

from dataclasses import dataclass

from sightline_trainer.recipe import Recipe


@dataclass(frozen=True)
class Needs:
    """What the services must allow.

    Attributes:
        candidates: of one Sample, and the key that asks for so many.
        tokens: of one candidate.
        texts: of one Score, where every text has one sentence.
    """

    candidates: int
    candidates_key: str
    tokens: int
    texts: int

    @classmethod
    def of(cls, recipe: Recipe) -> Needs:
        """What a recipe needs."""
        parts = recipe.candidates.chosen()
        policy, evaluation = parts.get("policy"), recipe.evaluation
        asked = {
            "sampling.candidates": recipe.sampling.candidates if policy else 0,
            "candidates.noised_image.count": parts["noised_image"].count if "noised_image" in parts else 0,
            "evaluation.samples": evaluation.samples if evaluation.diverse_prompts else 0,
        }
        key = max(asked, key=lambda name: asked[name])
        prompts = min(policy.per_image, len(policy.paraphrases) or 1) if policy else 1
        texts = prompts * asked["sampling.candidates"] + sum(
            len(part.writes) * getattr(part, "count", 1) for name, part in parts.items() if name != "policy"
        )
        return cls(max(1, asked[key]), key, recipe.sampling.max_tokens, max(1, texts))
