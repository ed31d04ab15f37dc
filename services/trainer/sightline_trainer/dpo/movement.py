"""Measures what an update changed, and refuses an update that changed nothing.

An update can end with a normal loss and leave the policy unchanged: a number type too coarse for the learning rate, a
rate of 0, a saturated loss whose gradient is exactly 0, a tensor that no loss reaches. So the weights are compared
before and after, among the elements that ever had a gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sightline.errors import InternalError, PreconditionFailed
from torch import Tensor, nn
from transformers import TrainerCallback

from sightline_trainer.dpo.sharded import reshard
from sightline_trainer.dpo.trainer import FastDPOTrainer

logger = logging.getLogger(__name__)

LEAST_CHANGED = 0.5
"""Minimum share of the elements with a gradient that an update must change; bfloat16 weights at 5e-6 changed 0.02."""
_NAMED = 3  # tensors that an error names
_FLAT_LOSSES = {"hinge"}  # their gradient is 0 if the margin is won


class Movement(TrainerCallback):
    """Keeps the initial weights, records which tensors get a gradient, and compares at the end.

    The copy is in main memory, 4 bytes for each trained float32 number; each process handles its own shard.
    """

    def __init__(self, trainer: FastDPOTrainer) -> None:
        self.trainer = trainer
        self.flat_steps = 0
        self._before: dict[str, Tensor] = {}
        self._waiting: dict[str, nn.Parameter] = {}
        self._owed: set[str] = set()
        self._seen: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        reshard(self.trainer.model)
        self._waiting = {
            name: parameter for name, parameter in self.trainer.model.named_parameters() if parameter.requires_grad
        }
        self._before = {name: _local(each).detach().to("cpu", copy=True) for name, each in self._waiting.items()}
        for name in self._seen:
            self._waiting.pop(name, None)

    @contextmanager
    def initial(self) -> Iterator[None]:
        """A context in which the trained tensors have their values from before the update. For one process only."""
        named = self._named(list(self._before))
        with torch.no_grad():
            now = {name: parameter.detach().to("cpu", copy=True) for name, parameter in named}
            for name, parameter in named:
                parameter.copy_(self._before[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in named:
                    parameter.copy_(now[name])

    def counted(self) -> dict[str, Any]:
        """Its records, for an update that resumes."""
        seen = sorted(self._before.keys() - self._waiting.keys())
        return {"flat_steps": self.flat_steps, "owed": sorted(self._owed), "seen": seen}

    def recall(self, counted: dict[str, Any]) -> None:
        """Continue from these records."""
        self.flat_steps, self._owed, self._seen = counted["flat_steps"], set(counted["owed"]), counted["seen"]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Removes tensors with a nonzero gradient from the list. After a step or two the list is empty."""
        for name, parameter in list(self._waiting.items()):
            if parameter.grad is not None and bool(_local(parameter.grad).any()):
                del self._waiting[name]
            elif "lora_A" not in name or bool(_local(self._partner(name)).any()):
                self._owed.add(name)  # A gets no gradient while B is 0, as in a new adapter's first step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Stops at a gradient of exactly 0, unless the loss may have such a gradient.

        Raises:
            InternalError: GRADIENT_IS_ZERO.
        """
        if (logs or {}).get("grad_norm", 1.0) == 0.0:
            self.flat_steps += 1
            if not set(self.trainer.losses) <= _FLAT_LOSSES:
                raise InternalError(
                    f"the gradient of step {state.global_step} is exactly 0: the loss is saturated, or both sides of "
                    "the pairs are the same. Nothing is published. Lower dpo.learning_rate, or check the pairs",
                    reason="GRADIENT_IS_ZERO",
                )

    def _partner(self, name: str) -> Tensor:
        found: Tensor = self.trainer.model.get_parameter(name.replace("lora_A", "lora_B"))
        return found

    def measure(self) -> dict[str, float]:
        """`changed_tensors` and `changed_elements`, shares among those that ever had a gradient, and `update_norm`, the
        length of the whole change (L2). Every process calls.

        Raises:
            PreconditionFailed: trained tensors never had a gradient (TENSORS_WITHOUT_GRADIENT), or fewer than half of
                the elements that had one changed (UPDATE_CHANGED_NOTHING).
        """
        reshard(self.trainer.model)
        names = list(self._before)
        counts = torch.zeros(
            len(names), 5, dtype=torch.float64
        )  # seen, owed, elements with a gradient, changed, squared norm
        state = self.trainer.optimizer.state
        for row, (name, parameter) in enumerate(self._named(names)):
            before, after = self._before[name], _local(parameter).detach().to("cpu")
            touched = _touched(state.get(parameter, {}), after)
            different = before != after
            moved = torch.linalg.vector_norm((after.double() - before.double()).flatten()).item()
            counts[row] = torch.tensor(
                [
                    float(name not in self._waiting),
                    float(name in self._owed),
                    float(touched.sum()),
                    float((different & touched).sum()),
                    moved**2,
                ]
            )
        accelerator = self.trainer.accelerator
        if accelerator.num_processes > 1:
            counts = accelerator.reduce(counts.to(accelerator.device, torch.float32), reduction="sum").double().cpu()
            if not self.trainer.is_fsdp_enabled:
                counts /= accelerator.num_processes  # every process has all of it
        seen, owed, elements, changed, squares = counts.unbind(dim=1)
        had = seen > 0
        never = [name for name, ever, due in zip(names, had, owed > 0, strict=True) if due and not ever]
        if never:
            raise PreconditionFailed(
                f"{len(never)} of {len(names)} trained tensors never had a gradient, such as "
                f"{', '.join(never[:_NAMED])}: no loss reaches them. Nothing is published. Leave them out of "
                "dpo.lora.target_modules (or set dpo.train_vision=false)",
                reason="TENSORS_WITHOUT_GRADIENT",
            )
        figures = {
            "changed_tensors": (((changed > 0) & had).sum() / had.sum().clamp(min=1)).item(),
            "changed_elements": (changed.sum() / elements.sum().clamp(min=1.0)).item(),
            "update_norm": squares.sum().sqrt().item(),
            "zero_gradient_steps": float(self.flat_steps),
        }
        if not figures["changed_elements"] >= LEAST_CHANGED or not figures["update_norm"] > 0.0:
            raise PreconditionFailed(
                f"the update changed {figures['changed_elements']:.1%} of the elements that had a gradient (at least "
                f"{LEAST_CHANGED:.0%}), by {figures['update_norm']:.3g} in total: it learned nothing, and nothing is "
                "published. Raise dpo.learning_rate; with one step, dpo.warmup_ratio=0",
                reason="UPDATE_CHANGED_NOTHING",
            )
        logger.info(
            "update: %.1f %% of the elements with a gradient changed, by %.3g in total",
            100 * figures["changed_elements"],
            figures["update_norm"],
        )
        return figures

    def _named(self, names: list[str]) -> list[tuple[str, nn.Parameter]]:
        parameters = dict(self.trainer.model.named_parameters())
        return [(name, parameters[name]) for name in names]


def _touched(state: dict[str, Any], like: Tensor) -> Tensor:
    """Which elements ever had a gradient: those whose AdamW second moment is not 0. It starts at 0 and never returns to
    it."""
    moment = state.get("exp_avg_sq")
    return torch.zeros_like(like, dtype=torch.bool) if moment is None else _local(moment).cpu() != 0


def _local(tensor: Any) -> Tensor:
    """This process' part of a tensor that FSDP shards; otherwise the tensor."""
    mine: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return mine
