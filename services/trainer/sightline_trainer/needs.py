"""The largest requests that a recipe makes, for the limits of its services."""

from __future__ import annotations

from dataclasses import dataclass

from sightline_trainer.candidates.policy import PolicySamples
from sightline_trainer.recipe import Recipe
from sightline_trainer.speaker.settings import Speaking


@dataclass(frozen=True)
class Needs:
    """The limits that the services must allow.

    Attributes:
        candidates: candidates of one Sample call, and the key that sets their number.
        tokens: tokens of one candidate.
        texts: texts of one Score call, if every text has one sentence.
    """

    candidates: int
    candidates_key: str
    tokens: int
    texts: int

    @classmethod
    def of(cls, recipe: Recipe) -> Needs:
        """The limits that a recipe needs."""
        parts = recipe.candidates.chosen()
        policies = {name: part for name, part in parts.items() if isinstance(part, PolicySamples)}
        tree, evaluation = parts.get("sentence_beams"), recipe.evaluation
        counts = {name: part.count or recipe.sampling.candidates for name, part in policies.items()}
        asked = {
            "sampling.candidates": max(counts.values(), default=0),
            "candidates.sentence_beams.groups": tree.groups if tree else 0,
            "candidates.noised_image.count": parts["noised_image"].count if "noised_image" in parts else 0,
            "evaluation.samples": evaluation.samples if evaluation.diverse_prompts else 0,
        }
        key = max(asked, key=lambda name: asked[name])
        texts = sum(
            counts[name] * min(part.per_image, len(part.paraphrases) or 1) for name, part in policies.items()
        ) + sum(len(part.writes) * getattr(part, "count", 1) for name, part in parts.items() if name not in policies)
        tokens = [recipe.sampling.max_tokens, tree.sentence_tokens if tree else 1]
        tokens += [parts["segment"].tokens] if "segment" in parts else []
        for part in (*parts.values(), *recipe.reward.terms.chosen().values()):
            # P(yes) is read from one token, which is not sampled.
            if isinstance(part, Speaking) and part.who == "policy" and getattr(part, "parser", "") != "p_yes":
                tokens.append(part.max_tokens)
        return cls(max(1, asked[key]), key, max(tokens), max(1, texts))
