"""Training of the tiny LVLM: the Llama and the projector learn captions and yes/no answers; the tower stays frozen.

Because it is frozen, its features of all training pictures are computed once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sightline_playground import clip_model, llava_model
from sightline_playground.captions import PROMPTS, Prior, trained_caption
from sightline_playground.clip_training import Progress, warm_cosine
from sightline_playground.drawing import draw
from sightline_playground.questions import trained_question
from sightline_playground.scenes import Scene
from sightline_playground.tokens import EOS, lvlm_tokenizer
from sightline_playground.world import stream

if TYPE_CHECKING:
    import torch

IGNORE: Final = -100


@dataclass(frozen=True)
class LlavaRecipe:
    """Hyperparameters of the LVLM."""

    steps: int = 3000
    batch: int = 32
    """Captions per step; a step of questions has twice as many."""
    questions: float = 0.2
    """Share of steps that train yes/no answers."""
    rate: float = 2e-3
    """Peak of AdamW's learning rate: linear warm-up, cosine to nothing."""
    warmup: int = 150
    decay: float = 0.01
    prior: Prior = field(default_factory=Prior)


def chat(prompt: str) -> str:
    """One picture and this prompt after the processor's chat template, up to the assistant's turn."""
    return f"USER: <image>\n{prompt} ASSISTANT:"


def features(model: Any, scenes: Sequence[Scene]) -> torch.Tensor:
    """The projector's input for each scene: (N, 9, 96), float32."""
    import torch

    found = []
    with torch.inference_mode():
        for start in range(0, len(scenes), 256):
            pictures = [draw(scene) for scene in scenes[start : start + 256]]
            states = model.model.vision_tower(clip_model.pixels(pictures), output_hidden_states=True).hidden_states
            found.append(states[llava_model.FEATURE_LAYER][:, 1:])
    return torch.cat(found).clone()


def train(clip: Any, scenes: Sequence[Scene], recipe: LlavaRecipe, seed: int, progress: Progress) -> Any:
    """A trained LVLM in eval mode, on the tower of `clip`."""
    import torch

    torch.manual_seed(seed)
    model = llava_model.build(clip).train()
    seen = features(model, scenes)
    rng = stream("llava", seed)
    batches = Batches()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, recipe.warmup, recipe.steps))
    for step, (picks, pairs) in enumerate(lessons(scenes, recipe, rng)):
        ids, labels = batches.encode(pairs)
        loss = answer_loss(model, seen[picks], ids, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress(step + 1, recipe.steps, f"loss {loss.item():.3f}")
    return model.eval()


def lessons(
    scenes: Sequence[Scene], recipe: LlavaRecipe, rng: random.Random
) -> Iterator[tuple[list[int], list[tuple[str, str]]]]:
    """`recipe.steps` batches of scene numbers and their (prompt, answer) pairs, either captions or questions.

    A batch has captions of all lengths. Batches of similar length would save padding, but then the model learns later
    to use the picture.
    """
    for _ in range(recipe.steps):
        asking = rng.random() < recipe.questions
        picks = [rng.randrange(len(scenes)) for _ in range(recipe.batch * (2 if asking else 1))]
        yield (
            picks,
            [
                trained_question(scenes[pick], rng, recipe.prior)
                if asking
                else (rng.choice(PROMPTS), trained_caption(scenes[pick], rng, recipe.prior))
                for pick in picks
            ],
        )


class Batches:
    """Turns (prompt, answer) pairs into token ids, padded on the right, and labels on the answers only."""

    def __init__(self) -> None:
        self._tokenizer = lvlm_tokenizer()
        self._tokenizer.padding_side = "right"

    def encode(self, pairs: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, labels), both (B, L); labels are IGNORE on the prompt and on padding."""
        import torch

        heads = [chat(prompt).replace("<image>", "<image>" * llava_model.PATCHES) for prompt, _ in pairs]
        tails = [f" {answer}{EOS}" for _, answer in pairs]
        whole = self._tokenizer([h + t for h, t in zip(heads, tails, strict=True)], padding=True, return_tensors="pt")
        answers = self._tokenizer(tails, add_special_tokens=False).input_ids
        lengths = whole.attention_mask.sum(1)
        labels = whole.input_ids.clone()
        place = torch.arange(labels.shape[1])
        begins = lengths - torch.tensor([len(answer) for answer in answers])
        labels[(place < begins[:, None]) | (place >= lengths[:, None])] = IGNORE
        return whole.input_ids, labels


def answer_loss(model: Any, seen: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy per answer token, in nats; seen (B, 9, 96), ids and labels (B, L), padded on the right."""
    from torch.nn import functional as F

    embeddings = model.get_input_embeddings()(ids)
    pictures = model.model.multi_modal_projector(seen)
    slots = (ids == model.config.image_token_id).unsqueeze(-1)
    embeddings = embeddings.masked_scatter(slots, pictures)
    # Padding stands after the last label, so the causal mask alone keeps it out of sight.
    hidden = model.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    chosen = wanted != IGNORE
    return F.cross_entropy(model.lm_head(hidden[chosen]), wanted[chosen])
