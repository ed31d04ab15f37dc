"""FastDPOTrainer: TRL's DPOTrainer with weights and margins per pair, POVID's losses and numbers of our own.

It hangs on three methods that TRL and transformers mean to be overridden; the loss of a batch is TRL's code as it
stands. Several pairs of one prompt come in one batch, where they share their prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from sightline.errors import InternalError
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers.optimization import get_scheduler
from trl import DPOTrainer

from sightline_trainer.dpo.losses import povid_paper, sft_by_pair, summed, weighted_mean

# What TRL's loss code does not hand to the model itself.
_OURS = ("weight", "margin")


class PromptSampler(Sampler[int]):
    """Prompts in a new random order each epoch, the pairs of one prompt one after the other."""

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
    """Stands in for the model in TRL's loss code: the forward runs once, its output is kept."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.output: Any = None

    def __call__(self, **kwargs: Any) -> Any:
        if self.output is None:
            self.output = self.model(**kwargs)
        return self.output


class FastDPOTrainer(DPOTrainer):
    """See the module.

    Attributes:
        losses: the recipe's, by name.
        margin_scale: how far the chosen side must win, times the pair's margin.
        povid_betas: beta1, beta2.
        span: (number of this update from 0, updates in all) of one learning rate schedule; None: each has its own.
        figures: what the steps so far measured, each a mean over a global batch.
    """

    losses: dict[str, float]
    margin_scale: float = 0.0
    povid_betas: tuple[float, float] = (0.05, 0.05)
    span: tuple[int, int] | None = None

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
            # The shape of the schedule is asked from transformers' own, over the steps of all updates.
            whole = get_scheduler(
                self.args.lr_scheduler_type,
                torch.optim.SGD([torch.zeros(1)], lr=1.0),
                num_warmup_steps=self.args.get_warmup_steps(num_training_steps),
                num_training_steps=num_training_steps * updates,
            )
            shape = whole.lr_lambdas[0]
            self.lr_scheduler = LambdaLR(optimizer, lambda step: shape(done * num_training_steps + step))
        return self.lr_scheduler

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        ours = {name: inputs.pop(name) for name in _OURS if name in inputs}
        if "margin" in ours and self.margin_scale:
            # A win by m is a win against a reference that finds the chosen side likelier by m / beta.
            shift = self.margin_scale * ours["margin"] / (2 * self.beta)
            inputs = {
                **inputs,
                "ref_chosen_logps": inputs["ref_chosen_logps"] + shift,
                "ref_rejected_logps": inputs["ref_rejected_logps"] - shift,
            }
        recorder = Recorder(model)
        if "weight" in ours:
            loss = self._weighted(recorder, inputs, ours["weight"])
        else:
            loss = super()._compute_loss(recorder, inputs, False)
        if "ref_chosen_logps" in inputs:
            chosen, rejected = self._logratios(recorder.output, inputs)
            if "povid_paper" in self.losses:
                each = povid_paper(chosen, rejected, self.beta, self.povid_betas)
                weights = ours.get("weight", torch.ones(2 * len(each), device=each.device))[: len(each)]
                loss = loss + self.losses["povid_paper"] * weighted_mean(list(each), weights)
            self._measure(loss.detach(), recorder.output, chosen.detach(), rejected.detach(), ours.get("margin"))
        return (loss, recorder.output) if return_outputs else loss

    def _logratios(self, output: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        rows = inputs["completion_mask"].shape[1] - 1
        chosen, rejected = summed(output.log_probs[:, -rows:])
        return chosen - inputs["ref_chosen_logps"], rejected - inputs["ref_rejected_logps"]

    def _weighted(self, recorder: Recorder, inputs: dict[str, Any], weights: Tensor) -> Tensor:
        """TRL's loss of each pair on its own, from one forward. Its sft is a mean over the tokens of the batch, which
        pairs on their own don't have: that one is ours, and the same at weights of 1."""
        output = recorder(**self._model_inputs(inputs))
        losses = []
        with self._without_sft():
            for i in range(len(weights)):
                rows = [i, len(weights) + i]
                view = {key: inputs[key][rows] for key in ("input_ids", "attention_mask", "completion_mask")}
                view |= {key: inputs[key][i : i + 1] for key in ("ref_chosen_logps", "ref_rejected_logps")}
                part = _rows(output, rows)
                losses.append(super()._compute_loss(lambda part=part, **_: part, view, False))
        if "sft" in self.losses:
            mask = inputs["completion_mask"][: len(weights), 1:]
            each = sft_by_pair(output.log_probs[: len(weights), -mask.shape[1] :], mask)
            losses = [loss + self.losses["sft"] * sft for loss, sft in zip(losses, each, strict=True)]
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
        """The arguments that TRL's loss code calls the model with."""
        rest = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps"}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        model = {key: value for key, value in inputs.items() if key not in rest}
        return {**model, "use_cache": False, "labels": labels, "fused_lm_head": True}

    def _measure(self, loss: Tensor, output: Any, chosen: Tensor, rejected: Tensor, margin: Tensor | None) -> None:
        """Figures of the global batch: log-probs in nats, margin and accuracy of the rewards, the mean log-ratio to
        the reference of the pairs' sides (texts of an earlier policy: no KL; that is `evaluation.divergence`).

        Raises:
            InternalError: the loss is not finite, on whichever process.
        """
        if not self.model.training:
            return
        if margin is not None and self.margin_scale:
            shift = self.margin_scale * margin / (2 * self.beta)
            chosen, rejected = chosen + shift, rejected - shift
        logps = summed(output.log_probs.detach())
        gap = chosen - rejected
        figures = {
            "loss": loss,
            "chosen_logp": logps[0].mean(),
            "rejected_logp": logps[1].mean(),
            "margin": self.beta * gap.mean(),
            "accuracy": (gap > 0).float().mean(),
            "logratio_to_reference": (chosen + rejected).mean() / 2,
        }
        values = self.accelerator.reduce(torch.stack(list(figures.values())), reduction="mean").tolist()
        self.figures.append(dict(zip(figures, values, strict=True)))
        if not math.isfinite(values[0]):
            raise not_finite("loss", self.state.global_step + 1)


def not_finite(what: str, step: int) -> InternalError:
    """The error for a `what` that became NaN or infinite."""
    return InternalError(
        f"the DPO {what} became NaN or infinite in step {step}; the policy is not published. "
        "Lower dpo.learning_rate or dpo.max_grad_norm, or look at the pairs of this iteration",
        reason="LOSS_NOT_FINITE",
    )


def _rows(output: Any, rows: list[int]) -> Any:
    """A model output of only some rows."""
    return type(output)(
        **{
            name: value[rows] if isinstance(value, Tensor) and value.dim() == 2 else value
            for name, value in output.items()
        }
    )
