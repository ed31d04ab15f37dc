"""Sections of a recipe that do not depend on parts: the settings of each stage of the loop."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator
from sightline_chassis.settings import Section, Target

from sightline_trainer.decoding_settings import Decoding
from sightline_trainer.dpo.loss_names import CHOSEN_AT_VIEW, EXTRA_ROWS, NAMES, OWN, WHOLE, loss_fault
from sightline_trainer.dpo.method import Doubt, Guidance, References, TokenWeights, View
from sightline_trainer.dpo.open_losses import Loss, bound, open_names


class Mix(Section):
    """Released pairs in addition to those of the policy's own candidates."""

    offline: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="Share of an iteration's prompts that are rows of data.pairs; 1: nothing is sampled.",
    )
    start: int = Field(0, ge=0, description="Number of first iterations that learn only from rows of data.pairs.")


class Data(Section):
    """Where prompts and images come from: directories, files, LLaVA's conversations, `datasets` (see docs/data.md)."""

    train: str = Field(description="Dataset that the loop draws prompts from.")
    test: str = Field(description="Held-out dataset, for evaluation only.")
    prompts_per_iteration: int = Field(512, ge=1, description="Prompts per iteration, at most the whole dataset.")
    pairs: str | None = Field(
        None,
        description=(
            "A released preference set in its original format: POVID, BPO, RLHF-V, RLAIF-V, "
            "VLFeedback, CSR, SENA, SeVa, or TRL's (docs/data.md)."
        ),
    )
    mix: Mix = Field(default_factory=lambda: Mix(), description="How released pairs are mixed with the policy's own.")

    @model_validator(mode="after")
    def _mixes_something(self) -> Self:
        if self.pairs is None and self.mix != Mix():
            raise ValueError("data.mix mixes in the rows of data.pairs: name a set there, or leave mix out")
        return self

    def references(self) -> dict[str, str]:
        """The named datasets, by key."""
        named = {"data.train": self.train, "data.test": self.test, "data.pairs": self.pairs}
        return {key: reference for key, reference in named.items() if reference is not None}


class Sampling(Section):
    """How candidates are sampled from the policy."""

    address: Target | None = Field(None, description="gRPC target of a sampler; null: `sightline run` starts one.")
    candidates: int = Field(8, ge=2, le=256, description="K, the number of candidates per prompt.")
    temperature: float = Field(1.0, gt=0.0, le=5.0, description="Softmax temperature.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Nucleus mass; 1 keeps all tokens.")
    max_tokens: int = Field(64, ge=1, description="Maximum number of new tokens of a candidate.")
    max_in_flight: int = Field(
        32, ge=1, le=1024, description="Prompts in flight at the same time, at each sampler of a fleet."
    )
    staleness: int = Field(
        0,
        ge=0,
        le=1,
        description=(
            "0: strictly on-policy. 1: the next iteration is sampled while the current update trains,"
            " by the policy that the update started from."
        ),
    )
    timeout_seconds: float = Field(300.0, gt=0.0, description="Deadline of one prompt's candidates.")
    rests: bool | None = Field(
        None,
        description=(
            "Let the sampler release its memory (caches, weights) while the update trains. Null: yes "
            "if `sightline run` starts it on the GPU of the update."
        ),
    )

    @model_validator(mode="after")
    def _rests_between(self) -> Self:
        if self.rests and self.staleness:
            raise ValueError(
                "sampling.rests pauses sampling during the update, but sampling.staleness samples then: use one of them"
            )
        return self


class RewardService(Section):
    """The scorer for CLIPScores."""

    address: Target | None = Field(None, description="gRPC target of a scorer; null: `sightline run` starts one.")
    model: str = Field("", description="Name of the scorer's model; empty: its default.")
    source: str | None = Field(None, description="open_clip name or local-dir:PATH, for a scorer started here.")
    pretrained: str | None = Field(None, description="Its pretrained tag, for an open_clip name.")
    timeout_seconds: float = Field(60.0, gt=0.0, description="Deadline of one image with its texts.")
    max_in_flight: int = Field(32, ge=1, le=1024, description="Number of images in flight.")


class ServiceKeys(Section):
    """Settings of a service by its own keys; the service checks them."""

    model_config = ConfigDict(extra="allow")


class LocalServices(Section):
    """Settings of the services that `sightline run` starts if the recipe names none; a running service has its own."""

    sampler: ServiceKeys = Field(
        default_factory=ServiceKeys,
        description="Settings as in a sampler's own file: {engine: {device: cuda}}.",
    )
    scorer: ServiceKeys = Field(
        default_factory=ServiceKeys, description="Settings as in a scorer's own file: {triton: {device: cpu}}."
    )


class Lora(Section):
    """The trained adapter."""

    rank: int = Field(16, ge=1, le=512, description="Rank of the update.")
    alpha: int = Field(32, ge=1, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout on the adapter's input.")
    target_modules: str | None = Field(
        None,
        description=(
            "Regular expression for the linear layers that get an adapter; null: all of the decoder's"
            " layers except its head."
        ),
    )

    @field_validator("target_modules")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"it is not a regular expression: {error}") from None
        return pattern


CHECKPOINT_SECONDS = 600.0
"""Default seconds between checkpoints of a LoRA's update."""


class Dpo(Section):
    """The update: TRL's DPOTrainer on LoRA, the reference being the base model (adapter off)."""

    beta: float = Field(0.1, gt=0.0, description="DPO's beta: how strongly the policy is kept near the reference.")
    loss: dict[str, float] = Field(
        default_factory=lambda: {"sigmoid": 1.0},
        description=f"Losses and their weights: {', '.join(NAMES)}, or a third-party loss by package.module:Name.",
    )
    learning_rate: float = Field(2e-4, gt=0.0, description="Peak learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="Learning-rate schedule within an iteration."
    )
    warmup_ratio: float = Field(0.05, ge=0.0, lt=1.0, description="Share of the steps used for warm-up.")
    epochs: float = Field(1.0, gt=0.0, description="Epochs over an iteration's pairs.")
    batch_size: int = Field(16, ge=1, description="Pairs in one forward and backward pass.")
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description=(
            "Maximum number of tokens, image tokens included, in one forward and backward pass. A "
            "larger batch is split; the gradients of its parts add up to its own. Null: never split."
        ),
    )
    accumulate: int = Field(1, ge=1, description="Forward and backward passes per optimiser step.")
    max_grad_norm: float = Field(1.0, gt=0.0, description="Clip the gradient norm at this value.")
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW weight decay.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Type that the update computes in. Trained parameters are always float32."
    )
    kernels: Literal["auto", "plain"] = Field(
        "auto",
        description=(
            "Auto: on a GPU, compute the decoder's norms, MLPs and rotary embeddings by Liger's fused kernels, where "
            "liger-kernel is installed (the extra liger) and a kernel gives the layer's own values. Plain: never."
        ),
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = Field(
        "sdpa",
        description=(
            "Attention implementation of the update's model. The shared prefix needs sdpa; any other trains plain rows."
        ),
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory.")
    train: Literal["lora", "full"] = Field(
        "lora", description="lora: an adapter on the base model; full: the language model's own weights."
    )
    train_vision: bool = Field(
        False,
        description=(
            "With train: full, also train the vision tower and the projector; their features cannot be cached then."
        ),
    )
    lora: Lora = Field(default_factory=Lora)
    train_projector: bool = Field(
        False,
        description=(
            "With train: lora, also train the projector between vision tower and decoder, as POVID "
            "and BPO do; image features cannot be cached then. It is published in the adapter's file."
        ),
    )
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=0.5, description="Assumed share of swapped pairs: robust, aot, exo_pair (needs > 0)."
    )
    ld_alpha: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="LD-DPO: weight of the tokens beyond the shorter side's length; null: 1.",
    )
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = Field(
        "reverse_kl", description="f-DPO: divergence between policy and reference."
    )
    discopop_tau: float = Field(0.05, gt=0.0, description="DiscoPOP: temperature of its blend.")
    wpo: bool = Field(False, description="WPO: weight each pair by its likelihood under the policy.")
    margin_scale: float = Field(
        0.0,
        ge=0.0,
        description="ODPO: the chosen side must win by this factor times the pair's `margin`; 0: plain DPO.",
    )
    povid_betas: tuple[float, float] = Field(
        (0.05, 0.05), description="povid_paper: beta1 of the injected and beta2 of the noised image's rejected side."
    )
    view: View = Field(default_factory=View, description="What image and image_joint show instead of the picture.")
    token_weights: TokenWeights = Field(default_factory=TokenWeights, description="Weight of each token.")
    guidance: Guidance = Field(default_factory=Guidance, description="V-DPO's visual guidance.")
    token_kl: float = Field(
        0.0,
        ge=0.0,
        description="TDPO2: the chosen side must win by this times how much further the policy is off the reference on "
        "the rejected side's tokens (CHiP 0.1); runs the reference in each step. 0: off.",
    )
    reference: References = Field(default_factory=References, description="The reference model.")
    doubt: Doubt = Field(default_factory=Doubt, description="cdpo: which pairs count as uncertain.")
    rpo_temperature: float = Field(
        0.5, gt=0.0, description="rpo: tau; a smaller value weighs near pictures more (paper: 0.25 to 0.5)."
    )
    shared_prefix: bool = Field(
        True,
        description=("Compute an image and its prompt once for all its responses; false: in every row, as TRL does."),
    )
    image_cache_mib: int = Field(
        512, ge=0, description="MiB of the frozen tower's image features to keep over steps and epochs; 0: none."
    )
    max_sampled_gap: float | None = Field(
        None,
        gt=0.0,
        description=(
            "Maximum mean |log-prob difference| per token, in nats, between trainer and sampler for a"
            " sampled side; at most 5 % of the sides may exceed it. Null: 0.001 in float32, 0.05 in "
            "bfloat16."
        ),
    )
    carry: Literal["none", "optimizer"] = Field(
        "none",
        description="optimizer: keep its state over iterations, with one schedule for the whole run.",
    )
    checkpoint_seconds: float | None = Field(
        None,
        ge=0.0,
        description=(
            "Seconds between checkpoints inside an update, from which it resumes after a kill; 0: "
            "none. Null: 600 with a LoRA; none with train: full, whose state takes 12 bytes a "
            "parameter."
        ),
    )
    launch: list[str] = Field(
        default_factory=list,
        description="Start the update with this launcher, such as [accelerate, launch, --num_processes, '8'].",
    )
    report_to: list[str] = Field(default_factory=list, description="TRL's trackers: tensorboard, wandb, trackio.")

    _opened: dict[str, Loss] = PrivateAttr(default_factory=dict)

    @property
    def opened_losses(self) -> dict[str, Loss]:
        """The functions of the third-party losses that were allowed to be imported, by name."""
        return self._opened

    @property
    def seconds_between_checkpoints(self) -> float | None:
        """How often an update writes a checkpoint; None: never."""
        if self.checkpoint_seconds is None:
            return CHECKPOINT_SECONDS if self.train == "lora" else None
        return self.checkpoint_seconds or None

    @model_validator(mode="after")
    def _trainable(self) -> Self:
        fault = loss_fault(
            self.loss,
            margins=self.margin_scale > 0,
            weights=False,
            label_smoothing=self.label_smoothing,
            divergence=self.f_divergence,
            wpo=self.wpo,
            token_kl=self.token_kl > 0,
            reshaped=self.token_weights.by != "none" or self.guidance.scale > 1.0,
            opened=open_names(self.loss),
        )
        if fault:
            raise ValueError(fault)
        self._opened = bound(self.loss)
        for key, losses in _ASKED_BY.items():
            changed = getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True)
            if changed and not set(losses) & set(self.loss):
                raise ValueError(
                    f"dpo.{key} works only with the loss {' or '.join(losses)}, not with {', '.join(self.loss)}: "
                    "remove the key, or add the loss"
                )
        if self.ld_alpha is not None and (own := {"povid_paper", *OWN, *open_names(self.loss)} & set(self.loss)):
            raise ValueError(
                f"dpo.ld_alpha works with TRL's losses, not with {', '.join(sorted(own))}: use one of them"
            )
        if self.token_kl and set(self.reference.of) != {"base"}:
            raise ValueError("dpo.token_kl runs the base model in each step: leave dpo.reference.of at {base: 1}")
        if "ema" in self.reference.of and self.train_projector:
            raise ValueError("dpo.reference.of.ema averages adapters, and dpo.train_projector trains more than one")
        if self.reference.from_sampler and (unlike := self._beyond_the_sampler()):
            raise ValueError(
                "dpo.reference.from_sampler takes plain sums of the sampler's log-probs, which do not go with "
                f"{', '.join(unlike)}: set it to false, or change that"
            )
        if self.batch_tokens is not None and (whole := WHOLE & set(self.loss)):
            raise ValueError(
                f"dpo.batch_tokens splits batches, which {', '.join(sorted(whole))} need whole: use one of them"
            )
        if self.train_vision and self.train != "full":
            raise ValueError("dpo.train_vision trains a tower's own weights: set dpo.train to full, or leave it out")
        if self.train_projector and self.train == "full":
            raise ValueError("dpo.train_projector goes with a LoRA: with dpo.train full, set dpo.train_vision")
        return self

    def _beyond_the_sampler(self) -> list[str]:
        """Settings whose reference log-probs are not the sums of what a sampler tells."""
        return [
            *([] if self.dtype == "float32" else [f"dpo.dtype={self.dtype}"]),
            *([] if self.ld_alpha is None else ["dpo.ld_alpha"]),
            *([] if self.token_weights.by == "none" else [f"dpo.token_weights.by={self.token_weights.by}"]),
            *([] if self.guidance.scale == 1.0 else ["dpo.guidance"]),
            *(f"the loss {name}" for name in self.loss if name in EXTRA_ROWS),
        ]


_ASKED_BY = {
    "label_smoothing": ("robust", "aot", "aot_unpaired", "exo_pair"),
    "discopop_tau": ("discopop",),
    "povid_betas": ("povid_paper",),
    "view": tuple(name for name, role in EXTRA_ROWS.items() if role == CHOSEN_AT_VIEW),
    "doubt": ("cdpo",),
    "rpo_temperature": ("rpo",),
}
"""Settings that only some losses use: with others they would silently do nothing."""


class Publication(Section):
    """How a new policy reaches the sampler, and the proof that it arrived."""

    probes: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = Field(
        "auto",
        description="Pairs whose responses sampler and trainer both score. auto: as many as show an update of that "
        "size, 32 at most.",
    )
    max_probe_gap: float = Field(
        0.05, gt=0.0, description="Maximum mean |log-prob difference| per token between sampler and trainer, in nats."
    )
    extrapolate: float = Field(
        0.0,
        ge=0.0,
        le=10.0,
        description=(
            "ExPO: publish theta + this * (theta - base model); the next update continues from theta. LoRA only."
        ),
    )
    files: Literal["auto", "shared", "pushed"] = Field(
        "auto",
        description=(
            "shared: the sampler reads the run's directory under the same path. pushed: the files are"
            " sent. auto: shared if the sampler sees the same policy at that path, else pushed."
        ),
    )
    quorum: float = Field(
        0.5, gt=0.0, le=1.0, description="Share of a fleet's samplers that must take a policy; the others are left out."
    )
    deadline_seconds: float = Field(
        1800.0, gt=0.0, description="Time limit; a sampler of a fleet that takes longer is left out."
    )
    keep: int = Field(
        2, ge=1, description="Number of policies that stay loaded in the sampler, the active one included."
    )


class Evaluation(Section):
    """The evaluation after each iteration, on held-out images through the same services."""

    prompts: int = Field(500, ge=1, description="Number of held-out prompts, the same ones every time.")
    temperature: float = Field(1.0, ge=0.0, le=5.0, description="Softmax temperature; 0 is greedy.")
    seed: int = Field(20240828, ge=0, description="Seed of the evaluation's samples.")
    greedy_prompts: int = Field(200, ge=0, description="Number of prompts that also get a greedy caption.")
    questions: int = Field(250, ge=0, description="Approximate number of the dataset's yes/no questions to ask.")
    diverse_prompts: int = Field(
        50, ge=0, description="Number of prompts that get `samples` captions, to measure diversity."
    )
    samples: int = Field(4, ge=2, le=64, description="Number of captions per image whose distinct ones are counted.")
    decoding: Decoding = Field(
        default_factory=Decoding,
        description=(
            "Decoding of every row but the base model's first, such as guidance; with iterations: 0 "
            "the base model is measured once more with it (training-free methods)."
        ),
    )

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        if self.decoding.beams is not None:
            raise ValueError("evaluation.decoding can't use beams: an image gets one caption, and answers are greedy")
        return self
