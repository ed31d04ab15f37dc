"""Training of the tiny LVLM: the Llama and the projector learn captions and yes/no answers; the tower stays frozen.

Because it is frozen, its features of all training pictures are computed once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from sightline_playground import clip_model, llava_model, mixture
from sightline_playground.captions import PROMPTS, Prior, trained_caption
from sightline_playground.clip_training import Progress, warm_cosine
from sightline_playground.drawing import draw
from sightline_playground.mixture import IGNORE, Mixture
from sightline_playground.questions import trained_question
from sightline_playground.scenes import Scene
from sightline_playground.tokens import EOS, lvlm_tokenizer
from sightline_playground.world import stream

if TYPE_CHECKING:
    import torch


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
    mixture: Mixture = field(default_factory=Mixture)


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
    batches = Batches()
    read(model, scenes, recipe, seed, batches)
    if recipe.mixture.freeze:
        for parameter in mixture.language(model):
            parameter.requires_grad_(False)
    seen = features(model, scenes)
    rng, forms = stream("llava", seed), stream("llava forms", seed)
    factor = partial(warm_cosine, warmup=recipe.warmup, steps=recipe.steps)
    learn = Optimizer([p for p in model.parameters() if p.requires_grad], recipe, factor)
    for step, (picks, pairs) in enumerate(lessons(scenes, recipe, rng)):
        form = recipe.mixture.form(forms)
        if form == "text":
            told = [trained_caption(scenes[pick], forms, recipe.prior) for pick in picks]
            loss = mixture.text_loss(model, *mixture.texts(batches.tokenizer, told))
        elif form == "documents":
            loss = answer_loss(model, seen[picks], *mixture.documents(batches.tokenizer, pairs))
        else:
            loss = answer_loss(model, seen[picks], *batches.encode(pairs))
        learn(loss)
        progress(step + 1, recipe.steps, f"loss {loss.item():.3f}")
    return model.eval()


def read(model: Any, scenes: Sequence[Scene], recipe: LlavaRecipe, seed: int, batches: Batches) -> None:
    """Train the language model alone, on captions without pictures, for `recipe.mixture.text_steps`."""
    rng, steps = stream("llava text", seed), recipe.mixture.text_steps
    learn = Optimizer(mixture.language(model), recipe, partial(warm_cosine, warmup=recipe.warmup, steps=steps))
    for _ in range(steps):
        told = [trained_caption(rng.choice(scenes), rng, recipe.prior) for _ in range(recipe.batch)]
        learn(mixture.text_loss(model, *mixture.texts(batches.tokenizer, told)))


class Rates(Protocol):
    """What an optimizer reads from a recipe: its peak learning rate and its weight decay."""

    @property
    def rate(self) -> float: ...
    @property
    def decay(self) -> float: ...


class Optimizer:
    """AdamW with a recipe's settings. The rate is multiplied by `factor(step)`; gradients are clipped to norm 1."""

    def __init__(self, parameters: list[Any], recipe: Rates, factor: Callable[[int], float]) -> None:
        import torch

        self._parameters = parameters
        self._adam = torch.optim.AdamW(parameters, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.decay)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._adam, factor)

    def __call__(self, loss: torch.Tensor) -> None:
        """One optimizer step."""
        import torch

        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._adam.step()
        self._schedule.step()

    def state(self) -> dict[str, Any]:
        """What a checkpoint must contain."""
        return {"adam": self._adam.state_dict(), "schedule": self._schedule.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self._adam.load_state_dict(state["adam"])
        self._schedule.load_state_dict(state["schedule"])


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
    """Turns (prompt, answer) pairs into token ids, padded on the right, and labels on the answers only.

    Args:
        tokenizer: None: the plain LVLM's.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer or lvlm_tokenizer()
        self.tokenizer.padding_side = "right"

    def encode(self, pairs: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, labels), both (B, L); labels are IGNORE on the prompt and on padding."""
        import torch

        heads = [chat(prompt).replace("<image>", "<image>" * llava_model.PATCHES) for prompt, _ in pairs]
        tails = [f" {answer}{EOS}" for _, answer in pairs]
        whole = self.tokenizer([h + t for h, t in zip(heads, tails, strict=True)], padding=True, return_tensors="pt")
        answers = self.tokenizer(tails, add_special_tokens=False).input_ids
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
