"""Reference models other than the base model alone.

    base       the base model: the adapter off, or a full update's frozen copy
    previous   the policy that the update starts from (CSR, SELM, SPA: each iteration's reference is the previous
    policy)
    ema        ref_0 = base, ref_i = d ref_{i-1} + (1 - d) policy_i in weights; for adapters in their deltas, which is
    exact
    several    MRPO (Le et al., AAAI 2025, arXiv 2405.16388): one virtual reference of all, for each response y

        pi_ref(y | x) = (sum_k a_k / pi_k(y | x))^-1

MRPO clips the others' log-probs to within some nats of the main (first named) reference's, and lets a_k follow how well
a reference separates both sides, |log pi_k(y_w) - log pi_k(y_l)|. Its formulas are taken from its abstract and citing
papers; its code was not read. SAPO's code (arXiv 2405.20830) moves its average by half in every step, so that ratios to
it stay near 0 and almost nothing is learned; here it moves once per update.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sightline.errors import PreconditionFailed
from sightline.sampler import policy_dirname
from torch import Tensor
from trl.trainer.utils import use_adapter

from sightline_trainer.dpo.method import References

_LEAST = 0.01
"""Policies with a smaller share are left out of the average."""
_NAME = "ref"


def combined(sums: Tensor, settings: References) -> Tensor:
    """[2 + E, B] log-probs of the virtual reference.

    Args:
        sums: [K, 2 + E, B] summed log-probs of both sides and the extra rows, in the order of `settings.of`.
    """
    if len(sums) == 1:
        return sums[0]
    main = sums[0]
    if settings.within is not None:
        sums = torch.maximum(torch.minimum(sums, main + settings.within), main - settings.within)
    shares = torch.tensor(list(settings.of.values()), dtype=sums.dtype, device=sums.device)
    weights = shares[:, None].expand(-1, sums.shape[2])
    if settings.adaptive:
        weights = weights * (sums[:, 0] - sums[:, 1]).abs().clamp(min=1e-6)
    weights = weights / weights.sum(dim=0)
    return -torch.logsumexp(weights.log()[:, None] - sums, dim=0)


def average_of(previous: Path | None, decay: float) -> dict[Path, float]:
    """Each policy's share in the average, the newest first; the base model has the rest.

    Args:
        previous: directory of the policy that the update begins with, its ancestors beside it.
        decay: d.
    """
    shares: dict[Path, float] = {}
    share = 1.0 - decay
    while previous is not None and previous not in shares and share >= _LEAST:
        shares[previous] = share
        share *= decay
        previous = _parent(previous)
    return shares


def _parent(policy: Path) -> Path | None:
    manifest = policy / "manifest.json"
    version = json.loads(manifest.read_text())["parent_version"] if manifest.exists() else 0
    found = policy.parent / policy_dirname(version)
    return found if version and found.is_dir() else None


@contextmanager
def shown_as(trainer: Any, name: str, previous: Path | None, decay: float) -> Iterator[Any]:
    """The model of a reference, ready for forward passes without gradients.

    Raises:
        PreconditionFailed: REFERENCE_UNUSABLE: the average can't be computed.
    """
    adapted = trainer.ref_model is None
    model = trainer.accelerator.unwrap_model(trainer.model)
    if name == "previous":
        yield trainer.model_wrapped
    elif name == "ema" and previous is not None:
        if trainer.is_fsdp_enabled:
            raise PreconditionFailed(
                "dpo.reference.of.ema averages whole weights, which FSDP shards; use base or previous",
                reason="REFERENCE_UNUSABLE",
            )
        shares = average_of(previous, decay)
        if adapted:
            with _averaged_adapter(model, shares), use_adapter(model, _NAME):
                yield trainer.model_wrapped
        else:
            with _averaged_weights(trainer.accelerator.unwrap_model(trainer.ref_model), shares):
                yield trainer.ref_model
    elif adapted:
        with use_adapter(model, None):
            yield trainer.model_wrapped
    else:
        yield trainer.ref_model


@contextmanager
def _averaged_adapter(model: Any, shares: Mapping[Path, float]) -> Iterator[None]:
    """An adapter whose delta is the weighted sum of several policies' deltas: their factors concatenated."""
    names = [f"kept_{number}" for number in range(len(shares))]
    active = model.active_adapter
    try:
        for name, policy in zip(names, shares, strict=True):
            model.load_adapter(str(policy), adapter_name=name, is_trainable=False)
        model.add_weighted_adapter(names, list(shares.values()), _NAME, combination_type="cat")
        model.set_adapter(active)
        yield
    finally:
        for name in (*names, _NAME):
            if name in model.peft_config:
                model.delete_adapter(name)
        model.set_adapter(active)


@contextmanager
def _averaged_weights(model: Any, shares: Mapping[Path, float]) -> Iterator[None]:
    """A frozen copy of the base model with the averaged weights."""
    kept = {name: each.detach().clone() for name, each in model.named_parameters()}
    rest = 1.0 - sum(shares.values())
    try:
        with torch.no_grad():
            for each in model.parameters():
                each.mul_(rest)
            for policy, share in shares.items():
                _add(model, policy, share)
        yield
    finally:
        with torch.no_grad():
            for name, each in model.named_parameters():
                each.copy_(kept[name])


def _add(model: Any, policy: Path, share: float) -> None:
    loaded = type(model).from_pretrained(policy, dtype=model.dtype).state_dict()
    named = dict(model.named_parameters())
    if missing := sorted(set(named) - set(loaded)):
        raise PreconditionFailed(
            f"the policy at {policy} lacks {len(missing)} of the base model's weights, such as {missing[0]}",
            reason="REFERENCE_UNUSABLE",
        )
    for name, each in named.items():
        each.add_(loaded[name].to(each), alpha=share)
