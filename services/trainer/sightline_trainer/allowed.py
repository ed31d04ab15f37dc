"""What a recipe may name if it comes from a caller of the service and not from its operator.

A recipe is data, but it names commands, addresses and directories. The service's settings list the allowed ones: others
are refused when a run is started, and again before it works.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import InvalidInput
from sightline_chassis.shipped import PLAYGROUND

from sightline_trainer.connections import Connections
from sightline_trainer.dpo.open_losses import open_names
from sightline_trainer.open_parts import permitted
from sightline_trainer.pools.dataset_name import directories
from sightline_trainer.recipe import Recipe
from sightline_trainer.rewards.picked import HumanPicks

_NAMES = ("address", "url")


@dataclass(frozen=True)
class Allowed:
    """What recipes may name.

    Attributes:
        launchers: commands of `dpo.launch`.
        addresses: services that may receive prompts and images, in addition to the settings' connections.
        data_roots: directories that may hold datasets and their images.
        parts: third-party parts that may be imported, as `open_parts` reads them.
    """

    launchers: Sequence[Sequence[str]] = ()
    addresses: Sequence[str] = ()
    data_roots: Sequence[Path] = ()
    parts: Sequence[str] = ()

    def check(self, recipe: Recipe, connections: Connections) -> None:
        """Refuse a recipe that names anything that is not allowed.

        Raises:
            InvalidInput: LAUNCHER_NOT_ALLOWED, PART_NOT_ALLOWED, ADDRESS_NOT_ALLOWED or DATA_NOT_ALLOWED; the message
                says what, and which setting would allow it.
        """
        launch = recipe.dpo.launch
        if launch and _command(launch) not in [_command(known) for known in self.launchers]:
            raise InvalidInput(
                f"dpo.launch names {launch}, which this trainer does not run for callers; leave it empty, or ask the "
                f"operator to list it in the trainer's settings (launchers)",
                reason="LAUNCHER_NOT_ALLOWED",
            )
        opened = [name for table in recipe.parts for name in table.opened()]
        for name in [*opened, *open_names(recipe.dpo.loss)]:
            if not permitted(name, self.parts):
                raise InvalidInput(
                    f"{name} names code that this trainer does not import for callers; leave it out, or ask the "
                    f"operator to list it in the trainer's settings (parts)",
                    reason="PART_NOT_ALLOWED",
                )
        ours = {one.address for one in (connections.scorer, connections.sampler) if one is not None}
        for key, address in _addresses(recipe.model_dump(mode="json")):
            if address not in ours and address not in self.addresses:
                raise InvalidInput(
                    f"{key}={address}: this trainer sends prompts and images only to addresses in its settings; "
                    f"leave it out, or ask the operator to list it there (addresses)",
                    reason="ADDRESS_NOT_ALLOWED",
                )
        self.check_data(recipe.data.references())
        for name, term in recipe.reward.terms.chosen().items():
            if isinstance(term, HumanPicks) and term.file is not None:
                self._check_places({f"reward.terms.{name}.file": [Path(term.file).expanduser()]})

    def check_data(self, references: Mapping[str, str]) -> None:
        """Refuse datasets (given by recipe key) outside the allowed directories.

        Raises:
            InvalidInput: DATA_NOT_ALLOWED; the message says what, and which setting would allow it; DATA_NOT_DRAWN: a
                playground's scenes, which only `sightline run` draws.
        """
        for key, reference in references.items():
            if reference.startswith(PLAYGROUND):
                raise InvalidInput(
                    f"{key}: {reference} is drawn by `sightline run`, not by a trainer service: write the scenes into "
                    "one of its directories with `python -m sightline_playground export --split SPLIT --count N --seed "
                    "S --out DIRECTORY`, and name that",
                    reason="DATA_NOT_DRAWN",
                )
        self._check_places({key: directories(reference) for key, reference in references.items()})

    def _check_places(self, read: Mapping[str, Iterable[Path]]) -> None:
        for key, places in read.items():
            for directory in places:
                if not self._holds(directory):
                    raise InvalidInput(
                        f"{key}: {directory} is outside the directories from which this trainer reads datasets; ask "
                        f"the operator to list its directory in the trainer's settings (data_roots)",
                        reason="DATA_NOT_ALLOWED",
                    )

    def _holds(self, directory: Path) -> bool:
        real = directory.resolve()
        return any(real.is_relative_to(root.resolve()) for root in self.data_roots)


def _command(words: Sequence[str]) -> list[str]:
    """A command in which each file has one spelling: in a run's directory, paths are absolute."""
    return [os.path.realpath(word) if os.sep in word and os.path.exists(word) else word for word in words]


def _addresses(tree: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """All services that a recipe names anywhere: (key, address)."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in _NAMES and isinstance(value, str) and value:
                yield f"{where}{key}", value
            else:
                yield from _addresses(value, f"{where}{key}.")
    elif isinstance(tree, list):
        for value in tree:
            yield from _addresses(value, where)
