"""Training of the skilled LVLM: the plain one learns four more skills, on the same training scenes.

The tower stays frozen, so it sees what the plain one sees. Checkpoints are written during training; an interrupted
training continues from the last one and ends with the same weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from sightline_playground.captions import Prior
from sightline_playground.clip_training import Progress, warm_cosine
from sightline_playground.llava_model import INIT
from sightline_playground.llava_training import Batches, Optimizer, answer_loss, features
from sightline_playground.scenes import Scene
from sightline_playground.skills import Lesson, extra_words, lesson
from sightline_playground.tokens import lvlm_tokenizer
from sightline_playground.world import stream

CHECKPOINT: Final = "checkpoint.pt"
SHARES: Final[dict[Lesson, float]] = {
    "help": 0.12,
    "faith": 0.15,
    "ethics": 0.02,
    "facts": 0.05,
    "agree": 0.04,
    "improve": 0.1,
    "ask": 0.05,
    "question": 0.16,
    "claim": 0.14,
    "describe": 0.11,
    "told": 0.06,
}
LONG: Final[tuple[Lesson, ...]] = ("facts", "agree", "improve", "describe", "told")


@dataclass(frozen=True)
class SkilledRecipe:
    """Hyperparameters of the skilled LVLM."""

    steps: int = 1300
    batch: int = 32
    """Lessons per step, all of one kind. Steps of questions have twice as many, and steps with long prompts or replies
    half as many."""
    rate: float = 1.5e-3
    """AdamW's peak learning rate: linear warm-up, then a cosine that would reach 0 at step `cosine`."""
    warmup: int = 100
    cosine: int = 2600
    ending: int = 300
    """Number of last steps, in which the rate falls to 0 linearly."""
    decay: float = 0.01
    prior: Prior = field(default_factory=Prior)
    shares: dict[Lesson, float] = field(default_factory=lambda: dict(SHARES))
    """Share of the steps of each kind of lesson."""

    def factor(self, step: int) -> float:
        """Factor on the learning rate."""
        return warm_cosine(step, self.warmup, self.cosine) * min(1.0, (self.steps - step) / self.ending)


def tokenizer() -> Any:
    """The plain LVLM's tokenizer, with the words of the skills' prompts appended."""
    return lvlm_tokenizer(extra_words())


def widened(base: Any, seed: int) -> Any:
    """The plain LVLM with embeddings for the new words; old words keep their numbers and vectors."""
    import torch

    torch.manual_seed(seed)
    known = base.get_input_embeddings().num_embeddings
    base.resize_token_embeddings(len(tokenizer()), mean_resizing=False)
    with torch.no_grad():
        for part in (base.get_input_embeddings(), base.get_output_embeddings()):
            torch.nn.init.normal_(part.weight[known:], std=INIT)
    return base


def train(
    base: Any,
    scenes: Sequence[Scene],
    recipe: SkilledRecipe,
    seed: int,
    progress: Progress,
    directory: Path | None = None,
    every: int = 200,
) -> Any:
    """The skilled LVLM in eval mode. It changes `base`, the plain one.

    Args:
        directory: where a checkpoint is written every `every` steps; None writes none.

    Raises:
        ValueError: the checkpoint is of another recipe or seed.
    """
    import torch

    model = widened(base, seed).train()
    model.model.vision_tower.requires_grad_(False)
    learn = Optimizer([p for p in model.parameters() if p.requires_grad], recipe, recipe.factor)
    kept = None if directory is None else directory / CHECKPOINT
    made_by = {**asdict(recipe), "seed": seed, "scenes": len(scenes)}
    first = 0
    if kept is not None and kept.exists():
        first = _resume(kept, made_by, model, learn)
    seen = features(model, scenes)
    batches = Batches(tokenizer())
    for step in range(first, recipe.steps):
        picks, pairs = lessons(scenes, recipe, seed, step)
        ids, labels = batches.encode(pairs)
        loss = answer_loss(model, seen[picks], ids, labels)
        learn(loss)
        progress(step + 1, recipe.steps, f"loss {loss.item():.3f}")
        if kept is not None and (step + 1) % every == 0:
            state = {"made_by": made_by, "step": step + 1, "model": model.state_dict(), "learn": learn.state()}
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, aside := kept.with_suffix(".part"))
            os.replace(aside, kept)
    return model.eval()


def lessons(
    scenes: Sequence[Scene], recipe: SkilledRecipe, seed: int, step: int
) -> tuple[list[int], list[tuple[str, str]]]:
    """A step's scene numbers and (prompt, reply) pairs, all of one kind. They depend on seed and step only."""
    rng = stream("skilled", seed, step)
    (kind,) = rng.choices(list(recipe.shares), list(recipe.shares.values()))
    rows = recipe.batch * 2 if kind == "question" else recipe.batch // 2 if kind in LONG else recipe.batch
    picks = [rng.randrange(len(scenes)) for _ in range(rows)]
    return picks, [lesson(kind, scenes[pick], rng, recipe.prior) for pick in picks]


def _resume(kept: Path, made_by: dict[str, Any], model: Any, learn: Optimizer) -> int:
    """Load a checkpoint. Returns the number of steps done."""
    import torch

    state = torch.load(kept, weights_only=True)
    if state["made_by"] != made_by:
        raise ValueError(f"{kept} was written with another recipe or seed; delete it to start again")
    model.load_state_dict(state["model"])
    learn.load(state["learn"])
    return int(state["step"])
