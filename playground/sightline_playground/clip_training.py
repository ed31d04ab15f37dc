"""Training of the tiny CLIP: contrastive, in-batch negatives plus hard negatives, logit scale held at 100."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sightline_playground import clip_model
from sightline_playground.contrast import contrast
from sightline_playground.drawing import draw
from sightline_playground.scenes import Scene
from sightline_playground.tokens import clip_tokenizer
from sightline_playground.world import stream

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int, str], None]
"""Called with (steps done, total steps, a short status)."""


@dataclass(frozen=True)
class ClipRecipe:
    """Hyperparameters of the scorer."""

    steps: int = 280
    batch: int = 96
    """Scenes per step; each gives one true and three false captions."""
    rate: float = 1.5e-3
    """Peak of AdamW's learning rate: linear warm-up, cosine to nothing."""
    warmup: int = 100
    decay: float = 0.05
    noise: float = 0.25
    """Share of training captions with an error, as on the web; it keeps the scorer's gaps small."""


def train(scenes: Sequence[Scene], recipe: ClipRecipe, seed: int, progress: Progress) -> Any:
    """A trained open_clip.CLIP in eval mode."""
    import torch

    torch.manual_seed(seed)
    model = clip_model.build().train()
    model.logit_scale.requires_grad_(False)
    tokenizer = clip_tokenizer()
    images = clip_model.pixels([draw(scene) for scene in scenes])
    rng = stream("clip", seed)
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, recipe.warmup, recipe.steps))
    for step in range(recipe.steps):
        picks = [rng.randrange(len(scenes)) for _ in range(recipe.batch)]
        rows = [contrast(scenes[pick], rng, recipe.noise) for pick in picks]
        texts = [text for column in zip(*rows, strict=True) for text in column]
        ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
        loss = contrastive_loss(model, images[picks], ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step + 1, recipe.steps, f"loss {loss.item():.3f}")
    return model.eval()


def contrastive_loss(model: Any, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy; images (B, 3, 48, 48), ids (m * B, L): B true captions, then false ones.

    Each image must find its own caption among all m * B; each true caption its image among B.
    """
    import torch
    from torch.nn import functional as F

    seen = F.normalize(model.encode_image(images), dim=-1)
    told = F.normalize(encode_by_length(model, ids), dim=-1)
    logits = model.logit_scale.exp() * seen @ told.T
    own = torch.arange(len(images))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(images)].T, own)) / 2


def encode_short(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Text features (N, 96) of ids (N, L) with L <= 77; equal to model.encode_text of ids padded to 77, but cheaper.

    The text tower is causal and pools at the end token, so what comes after it has no effect.
    """
    import torch

    length = ids.shape[1]
    hidden = model.token_embedding(ids) + model.positional_embedding[:length]
    hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask[:length, :length]))
    pooled: torch.Tensor = hidden[torch.arange(len(ids)), ids.argmax(dim=-1)] @ model.text_projection
    return pooled


def encode_by_length(model: Any, ids: torch.Tensor, parts: int = 6) -> torch.Tensor:
    """`encode_short` of ids (N, L) in parts of similar length, to reduce padding."""
    import torch

    lengths = ids.argmax(dim=-1) + 1
    order = lengths.argsort()
    pieces = [encode_short(model, ids[part, : int(lengths[part].max())]) for part in order.chunk(parts)]
    return torch.cat(pieces)[order.argsort()]


def warm_cosine(step: int, warmup: int, steps: int) -> float:
    """Factor on the learning rate: linear from 0 over `warmup` steps, then a half cosine to 0."""
    import math

    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
