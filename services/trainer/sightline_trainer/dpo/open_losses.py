"""Open losses: third-party losses, named by `package.module:Name` or by an entry point of `sightline.losses`.

    dpo: {loss: {sigmoid: 1.0, "mycompany.losses:calm": 0.5}}

A loss is a function that takes `Sides` (see `own_losses`) and returns [B], one value for each pair of the forward pass.
It may read all fields except `extras`, `doubt` and `nearness`, which belong to our own losses. Weights of pairs
multiply its values. A result of another shape, or with a value that is not finite, ends the update.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from sightline.errors import PreconditionFailed

from sightline_trainer.dpo.loss_names import NAMES
from sightline_trainer.open_parts import check_arguments, imported, is_open

if TYPE_CHECKING:
    from torch import Tensor

GROUP: Final = "sightline.losses"

Loss = Callable[..., Any]


def open_names(losses: Iterable[str]) -> list[str]:
    """The names that are not ours and may be open losses. Nothing is imported."""
    return [name for name in losses if name not in NAMES and is_open(name, GROUP)]


def bound(losses: Iterable[str]) -> dict[str, Loss]:
    """The open losses that may be imported here: their functions, by name.

    Raises:
        ValueError: a loss cannot be imported, or is not a function.
    """
    found = {name: imported(name, GROUP) for name in open_names(losses)}
    for name, loss in found.items():
        if loss is None:
            continue
        if not callable(loss) or isinstance(loss, type) or inspect.iscoroutinefunction(loss):
            raise ValueError(f"{name} is {loss!r:.80}, and must be a plain function that takes the pairs' `Sides`")
        try:
            check_arguments(loss, "sides")
        except ValueError as error:
            raise ValueError(f"{name} cannot be used: {error}") from None
    return {name: loss for name, loss in found.items() if loss is not None}


def check_bound(losses: Iterable[str], functions: dict[str, Loss]) -> None:
    """Check that all open losses were imported.

    Raises:
        PreconditionFailed: a loss was not (PART_NOT_IMPORTED).
    """
    for name in open_names(losses):
        if name not in functions:
            raise PreconditionFailed(
                f"dpo.loss: {name} is a third-party loss that was not imported: the person who runs the recipe must "
                "allow it",
                reason="PART_NOT_IMPORTED",
            )


def value(name: str, loss: Loss, sides: Any) -> Tensor:
    """[B], the loss of each pair, from its `Sides`.

    Raises:
        PreconditionFailed: the loss raised, or returned something other than B finite numbers (LOSS_UNUSABLE).
    """
    import torch

    try:
        found = loss(sides)
    except (Exception, SystemExit) as error:  # code of others may raise anything
        why = f"raised {type(error).__name__}: {error}"
        raise PreconditionFailed(f"dpo.loss: {name} {why}"[:500], reason="LOSS_UNUSABLE") from error
    if not isinstance(found, torch.Tensor) or found.shape != sides.chosen.shape:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        wanted = tuple(sides.chosen.shape)
        raise PreconditionFailed(
            f"dpo.loss: {name} returned {shape}; it must return a tensor of shape {wanted}, one value for each pair",
            reason="LOSS_UNUSABLE",
        )
    if torch.is_grad_enabled() and sides.chosen.requires_grad and not found.requires_grad:
        raise PreconditionFailed(
            f"dpo.loss: {name} has no gradient, so it would train nothing; compute it from the tensors of `sides`, "
            "without detach(), item() or NumPy",
            reason="LOSS_UNUSABLE",
        )
    if not bool(torch.isfinite(found).all()):
        raise PreconditionFailed(
            f"dpo.loss: {name} is not finite for every pair: it returned NaN or infinity; correct the function",
            reason="LOSS_UNUSABLE",
        )
    return found
