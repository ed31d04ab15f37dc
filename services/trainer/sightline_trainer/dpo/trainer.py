"""FastDPOTrainer: TRL's DPOTrainer with weights and margins per pair, extra rows and losses, and our own metrics.

It overrides three methods that TRL and transformers intend to be overridden; the loss of a batch is TRL's unchanged
code. Extensions enter at three places: the model may run more rows than TRL's code sees, the reference's log-probs may
be shifted, and our own losses are added from the same forward pass. Pairs of one prompt are put in one batch, where
they share their prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from sightline.errors import InternalError
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers.optimization import get_scheduler
from trl import DPOTrainer

from sightline_trainer.dpo.doubts import Doubts
from sightline_trainer.dpo.extra_rows import ExtraRow
from sightline_trainer.dpo.guidance import CHOSEN_BLIND, REJECTED_BLIND, guided
from sightline_trainer.dpo.losses import povid_paper, sft_by_pair, summed, weighted_mean
from sightline_trainer.dpo.method import References
from sightline_trainer.dpo.open_losses import Loss, value
from sightline_trainer.dpo.own_losses import OWN_LOSSES, Sides, nearness
from sightline_trainer.dpo.parts import in_step, merged, parts_of, shares
from sightline_trainer.dpo.token_kl import TokenKl

OURS = ("weight", "margin", "ref_extra_logps", "token_weights", "embedding")
"""Our own keys of a batch, which TRL's loss code would pass to the model."""
_ROWS = ("input_ids", "attention_mask", "completion_mask")


class PromptSampler(Sampler[int]):
    """Prompts in a new random order each epoch, with the pairs of one prompt next to each other."""

    def __init__(self, prompts: Sequence[str], seed: int) -> None:
        self.groups: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            self.groups.setdefault(prompt, []).append(index)
        self.count = len(prompts)
        self.seed = seed

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    epoch = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        groups = list(self.groups.values())
        for number in torch.randperm(len(groups), generator=generator).tolist():
            yield from groups[number]


class Recorder:
    """Replaces the model in TRL's code: the forward pass of all rows runs once, and TRL gets the first of them.

    Attributes:
        rows: number of rows for TRL.
        output: the output for all rows, after it ran.
        log_probs: [R, L - 1] of all rows, as losses see them.
    """

    def __init__(
        self, model: Callable[..., Any], inputs: dict[str, Any], rows: int, reshape: Callable[[Tensor], Tensor]
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.rows = rows
        self.reshape = reshape
        self.output: Any = None
        self.log_probs: Tensor

    def __call__(self, **kwargs: Any) -> Any:
        if self.output is None:
            self.output = self.model(**self.inputs)
            self.log_probs = self.reshape(self.output.log_probs)
        return _rows(self.output, slice(self.rows), self.log_probs)


class FastDPOTrainer(DPOTrainer):
    """See the module.

    Attributes:
        losses: the recipe's, by name.
        opened: the functions of third-party losses, by name.
        extras: extra rows of each pair, after both sides of all pairs.
        guidance: V-DPO's g; 1 means no guidance.
        token_kl: computes both sides' token KLs; None: no shift.
        references, previous: the reference models, and the directory of the policy that the update starts from.
        from_sampler: share of the pairs whose reference log-probs are the sampler's; None where they may not be.
        doubts: for cdpo. rpo_temperature: for rpo.
        margin_scale: factor on the pair's margin, by which the chosen side must win.
        povid_betas: beta1, beta2.
        share, of_sft: a part's share of its batch, for mean losses over pairs and over tokens (`parts.py`).
        span: (number of this update from 0, total updates) of one learning rate schedule; None: each update has its
            own.
        figures: metrics of the steps so far, each a mean over a global batch.
    """

    losses: dict[str, float]
    opened: Mapping[str, Loss] = MappingProxyType({})
    extras: tuple[ExtraRow, ...] = ()
    guidance: float = 1.0
    token_kl: TokenKl | None = None
    references: References = References()
    previous: Path | None = None
    from_sampler: float | None = None
    doubts: Doubts | None = None
    rpo_temperature: float = 0.5
    margin_scale: float = 0.0
    povid_betas: tuple[float, float] = (0.05, 0.05)
    span: tuple[int, int] | None = None
    share: float = 1.0
    of_sft: float = 1.0

    def __init__(self, *args: Any, losses: dict[str, float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses = losses
        self.figures: list[dict[str, float]] = []

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        prompts = dataset["prompt_id"] if "prompt_id" in dataset.column_names else []
        if len(set(prompts)) == len(prompts):
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return PromptSampler(prompts, seed)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.span is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if getattr(self, "lr_scheduler", None) is None:
            done, updates = self.span
            optimizer = self.optimizer if optimizer is None else optimizer
            # transformers provides the schedule's shape, over the steps of all updates.
            whole = get_scheduler(
                self.args.lr_scheduler_type,
                torch.optim.SGD([torch.zeros(1)], lr=1.0),
                num_warmup_steps=self.args.get_warmup_steps(num_training_steps),
                num_training_steps=num_training_steps * updates,
            )
            shape = whole.lr_lambdas[0]
            self.lr_scheduler = LambdaLR(optimizer, lambda step: shape(done * num_training_steps + step))
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Compute a batch's gradient, part by part if it has parts; returns its loss."""
        parts = parts_of(inputs)
        step: Callable[..., Tensor] = super().training_step
        each = parts if self.data_collator.budget is None else in_step(parts, self.accelerator)
        if len(each) == 1:
            return step(model, each[0], num_items_in_batch)
        whole = shares(parts, 2 + len(self.extras))
        whole += [(0.0, 0.0)] * (len(each) - len(parts))
        begun = {name: len(values) for name, values in self._metrics["train"].items()}
        figures, losses = len(self.figures), []
        for number, (part, (share, tokens)) in enumerate(zip(each, whole, strict=True), 1):
            # Gradients of several processes are summed once, after the last part.
            waiting = nullcontext() if number == len(each) else self.accelerator.no_sync(model)
            with waiting, self._as_part(share, tokens):
                losses.append(step(model, part, num_items_in_batch))
        merged(self._metrics["train"], begun, [share for share, _ in whole])
        measured = self.figures[figures:]
        self.figures[figures:] = [{name: sum(one[name] for one in measured) for name in one} for one in measured[:1]]
        return torch.stack(losses).sum()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save without a model card and the processor, which are saved elsewhere."""
        processing: Any = self.processing_class
        self.processing_class: Any = None
        try:
            super(DPOTrainer, self)._save_checkpoint(model, trial)
        finally:
            self.processing_class = processing

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Does nothing: the trained weights are loaded after the starting policy was checked (`checkpoints.py`)."""

    def doubted(self, margins: Sequence[float]) -> None:
        """Restore the margins that an update saw before it was interrupted."""
        if self.doubts is not None:
            self.doubts.seen.extend(margins)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """As transformers counts them, for all parts."""
        return sum(super(FastDPOTrainer, self).floating_point_ops(part) for part in parts_of(inputs))

    @contextmanager
    def _as_part(self, share: float, tokens: float) -> Iterator[None]:
        """Inside, losses are those of a part of a batch; means over tokens count by its share of the tokens."""
        weights = self.loss_weights  # type: ignore[has-type]
        names: list[str] = self.loss_types  # type: ignore[has-type]
        self.share, self.of_sft = share, tokens / share if share else 0.0
        self.loss_weights = [
            weight * (self.of_sft if name == "sft" else 1.0) for name, weight in zip(names, weights, strict=True)
        ]
        try:
            yield
        finally:
            self.loss_weights, self.share, self.of_sft = weights, 1.0, 1.0

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        recorder, inputs, ours = self.recorded(model, inputs, guide=True)
        known, inputs = inputs, self._shifted(recorder, inputs, ours)
        if "weight" in ours:
            loss = self._weighted(recorder, inputs, ours["weight"])
        elif self.reshapes:
            with self._without_sft():
                loss = super()._compute_loss(recorder, inputs, False)
        else:
            loss = super()._compute_loss(recorder, inputs, False)
        loss = loss * self.share
        if "ref_chosen_logps" in inputs:
            sides = self._sides(recorder, inputs, known, ours)
            figures: dict[str, Tensor] = {}
            for name, each in self._own(sides, recorder, inputs, ours).items():
                weights = ours.get("weight", torch.ones(2 * len(each), device=each.device))[: len(each)]
                counts = self.of_sft if name == "sft" else 1.0
                figures[f"loss_{name}"] = counts * weighted_mean(list(each), weights)
                loss = loss + self.share * self.losses[name] * figures[f"loss_{name}"]
            self._measure(loss.detach(), recorder.output, sides, figures)
        return (loss, recorder.output) if return_outputs else loss

    @property
    def reshapes(self) -> bool:
        """Whether losses see other log-probs than the model's; sft always uses the model's."""
        return self.guidance > 1.0 or self.data_collator.token_weights.by != "none"

    def recorded(
        self, model: Callable[..., Any], inputs: dict[str, Any], *, guide: bool = False
    ) -> tuple[Recorder, dict[str, Any], dict[str, Tensor]]:
        """A replacement for the model that runs all rows of a batch, the batch with TRL's rows only, and our own keys.

        Args:
            guide: whether the rows are guided: the policy's are, the reference's are not.
        """
        ours = {name: inputs[name] for name in OURS if name in inputs}
        inputs = {name: value for name, value in inputs.items() if name not in OURS}
        rows = 2 * len(inputs["input_ids"]) // (2 + len(self.extras))

        def reshape(log_probs: Tensor) -> Tensor:
            if guide and self.guidance > 1.0:
                roles = [row.role for row in self.extras]
                blocks = log_probs[rows:].chunk(len(roles))
                blind = torch.cat([blocks[roles.index(CHOSEN_BLIND)], blocks[roles.index(REJECTED_BLIND)]])
                log_probs = torch.cat([guided(log_probs[:rows], blind, self.guidance), log_probs[rows:]])
            weights = ours.get("token_weights")
            return log_probs if weights is None else log_probs[:, -weights.shape[1] :] * weights

        first = {name: inputs[name][:rows] for name in _ROWS}
        return Recorder(model, self._model_inputs(inputs), rows, reshape), {**inputs, **first}, ours

    def _shifted(self, recorder: Recorder, inputs: dict[str, Any], ours: dict[str, Tensor]) -> dict[str, Any]:
        """The batch with the reference's log-probs shifted by the pairs' margins and the token KLs."""
        if "margin" in ours and self.margin_scale:
            # A win by m is a win against a reference under which the chosen side is likelier by m / beta.
            shift = self.margin_scale * ours["margin"] / (2 * self.beta)
            inputs = {
                **inputs,
                "ref_chosen_logps": inputs["ref_chosen_logps"] + shift,
                "ref_rejected_logps": inputs["ref_rejected_logps"] - shift,
            }
        if self.token_kl is not None:
            chosen, rejected = self.token_kl.of(self, recorder)
            inputs = {
                **inputs,
                "ref_chosen_logps": inputs["ref_chosen_logps"] - chosen.detach(),
                "ref_rejected_logps": inputs["ref_rejected_logps"] - rejected,
            }
        return inputs

    def _own(
        self, sides: Sides, recorder: Recorder, inputs: dict[str, Any], ours: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Values per pair of the losses that TRL does not compute, by name."""
        found = {name: OWN_LOSSES[name](sides) for name in self.losses if name in OWN_LOSSES}
        found |= {name: value(name, loss, sides) for name, loss in self.opened.items()}
        if "povid_paper" in self.losses:
            found["povid_paper"] = povid_paper(sides.chosen, sides.rejected, self.beta, self.povid_betas)
        if "sft" in self.losses and (self.reshapes or "weight" in ours):
            mask = inputs["completion_mask"][: len(sides.chosen), 1:]
            found["sft"] = sft_by_pair(recorder.output.log_probs[: len(mask), -mask.shape[1] :], mask)
        return found

    def _sides(
        self, recorder: Recorder, shifted: dict[str, Any], inputs: dict[str, Any], ours: dict[str, Tensor]
    ) -> Sides:
        """Log-ratios to the unshifted reference; in the difference, to the shifted one."""
        tokens = inputs["completion_mask"].shape[1] - 1
        sums = recorder.log_probs[:, -tokens:].float().sum(dim=1).view(2 + len(self.extras), -1)
        beside = sums[2:] - ours["ref_extra_logps"] if self.extras else ()
        difference = sums[0] - sums[1] - shifted["ref_chosen_logps"] + shifted["ref_rejected_logps"]
        doubts = self.doubts if "cdpo" in self.losses else None
        return Sides(
            beta=self.beta,
            chosen=sums[0] - inputs["ref_chosen_logps"],
            rejected=sums[1] - inputs["ref_rejected_logps"],
            difference=difference,
            extras={row.role: each for row, each in zip(self.extras, beside, strict=True)},
            doubt=None if doubts is None else doubts.of(difference, self._progress),
            nearness=nearness(ours["embedding"], self.rpo_temperature) if "rpo" in self.losses else None,
        )

    @property
    def _progress(self) -> float:
        return float(self.state.global_step / max(1, self.state.max_steps))

    def _weighted(self, recorder: Recorder, inputs: dict[str, Any], weights: Tensor) -> Tensor:
        """TRL's loss for each pair separately, from one forward pass. TRL's sft is a mean over the tokens of the batch,
        which single pairs don't have, so ours replaces it (`_own`); with weights of 1 both are equal."""
        output = recorder()
        losses = []
        with self._without_sft():
            for i in range(len(weights)):
                rows = [i, len(weights) + i]
                view = {key: inputs[key][rows] for key in ("input_ids", "attention_mask", "completion_mask")}
                view |= {key: inputs[key][i : i + 1] for key in ("ref_chosen_logps", "ref_rejected_logps")}
                part = _rows(output, rows)
                losses.append(super()._compute_loss(lambda part=part, **_: part, view, False))
        return weighted_mean(losses, weights)

    @contextmanager
    def _without_sft(self) -> Iterator[None]:
        whole: tuple[list[str], list[float]] = (self.loss_types, self.loss_weights)  # type: ignore[has-type]
        kept = [each for each in zip(*whole, strict=True) if each[0] != "sft"] or [("sigmoid", 0.0)]
        self.loss_types, self.loss_weights = [name for name, _ in kept], [weight for _, weight in kept]
        try:
            yield
        finally:
            self.loss_types, self.loss_weights = whole

    def _model_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The arguments with which TRL's loss code calls the model."""
        rest = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps"}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        model = {key: value for key, value in inputs.items() if key not in rest}
        if self.aux_loss_enabled:
            model["output_router_logits"] = True
        return {**model, "use_cache": False, "labels": labels, "fused_lm_head": True}

    def _measure(self, loss: Tensor, output: Any, sides: Sides, more: dict[str, Tensor]) -> None:
        """Figures of the global batch: log-probs in nats, margin and accuracy of the rewards, the mean log-ratio of the
        pairs' sides to the reference (not a KL, since an earlier policy wrote the texts; see `evaluation.divergence`).

        Raises:
            InternalError: the loss is not finite, on any process.
        """
        if not self.model.training:
            return
        chosen, rejected = sides.chosen.detach(), sides.rejected.detach()
        logps = summed(output.log_probs[: 2 * len(chosen)].detach())
        gap = chosen - rejected
        figures = {
            **{name: value.detach() for name, value in more.items()},
            "loss": loss,
            "chosen_logp": logps[0].mean(),
            "rejected_logp": logps[1].mean(),
            "margin": self.beta * gap.mean(),
            "accuracy": (gap > 0).float().mean(),
            "logratio_to_reference": (chosen + rejected).mean() / 2,
        }
        if self.share != 1.0:
            figures = {name: value if name == "loss" else value * self.share for name, value in figures.items()}
        values = self.accelerator.reduce(torch.stack(list(figures.values())), reduction="mean").tolist()
        self.figures.append(dict(zip(figures, values, strict=True)))
        if not math.isfinite(self.figures[-1]["loss"]):
            raise not_finite("loss", self.state.global_step + 1)


def not_finite(what: str, step: int) -> InternalError:
    """The error for a `what` that became NaN or infinite."""
    return InternalError(
        f"the DPO {what} became NaN or infinite in step {step}; the policy is not published. "
        "Lower dpo.learning_rate or dpo.max_grad_norm, or check the pairs of this iteration",
        reason="LOSS_NOT_FINITE",
    )


def _rows(output: Any, rows: list[int] | slice, log_probs: Tensor | None = None) -> Any:
    """A model output for only some rows, with other log-probs if given."""
    values = dict(output)
    if log_probs is not None:
        values["log_probs"] = log_probs
    return type(output)(
        **{
            name: value[rows] if isinstance(value, Tensor) and value.dim() == 2 else value
            for name, value in values.items()
        }
    )
