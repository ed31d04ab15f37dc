"""All checks of a run before it begins, for `sightline run RECIPE --check`.

`alone` runs the checks that need no service, `served` the others. Both collect findings; only bugs raise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError
from sightline_chassis.shipped import PLAYGROUND, model_place

from sightline_trainer.connections import Connections
from sightline_trainer.draws import Draws
from sightline_trainer.evaluation.evaluation_set import EvaluationSet
from sightline_trainer.pools import Pool, open_pool, side_files
from sightline_trainer.pools.preferences import open_preferences
from sightline_trainer.preflight import data, disk, memory
from sightline_trainer.preflight.begin import without_services
from sightline_trainer.preflight.duration import Duration, by_run, by_trial
from sightline_trainer.preflight.finding import Finding, found_by
from sightline_trainer.preflight.provable import too_small
from sightline_trainer.preflight.services import parts, services
from sightline_trainer.preflight.sizes import Sizes
from sightline_trainer.preflight.trial import Trial, ask, elsewhere, train_on
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.row_gate import RowGate
from sightline_trainer.session import Session, connected
from sightline_trainer.turns import sampler_rests

_OUTAGE_SECONDS = 20.0  # a busy machine may take some seconds to answer


class Check:
    """The findings so far.

    Args:
        scratch: directory for temporary files; the caller deletes it.
        root: the run's directory, if there is one or will be one.
        tell: called with the name of the current check.

    Attributes:
        findings: in the order in which they were found.
        sizes: the model's, once it could be built.
        memory, duration: estimates.
        trial: the trial update, if it was reached.
    """

    def __init__(
        self, recipe: Recipe, *, scratch: Path, root: Path, tell: Callable[[str], None] = lambda what: None
    ) -> None:
        self.recipe = recipe
        self.scratch, self.root, self.tell = scratch, root, tell
        self.began = time.monotonic()
        self.findings: list[Finding] = []
        self.sizes: Sizes | None = None
        self.memory: memory.Estimate | None = None
        self.duration = Duration(None, None, "no prompt was sampled")
        self.trial = Trial()
        self._gate = RowGate(recipe.processor)
        self._prompts: list[Prompt] = []
        self._count = self._held_out = 0

    @property
    def ok(self) -> bool:
        """Whether the run can start; there may be warnings."""
        return all(finding.severity != "error" for finding in self.findings)

    def alone(self, *, here: tuple[str, ...]) -> None:
        """Programs, model, data, memory and disk.

        Args:
            here: the services that will be started on this machine.
        """
        recipe = self.recipe
        self.tell("the model's config, processor and layers")
        self.sizes, found = without_services(recipe)
        self.findings += found
        self.tell("the datasets")
        seen = self._data()
        if self.sizes is None:
            return
        self.tell("memory and disk")
        length = self._gate.length(seen.readable[0]) if seen is not None and seen.readable else None
        self.memory = memory.estimate(recipe, self.sizes, prompt=length, here=here, scorer=_weights(recipe))
        self.findings += memory.too_large(self.memory, strict=True)
        if seen is not None:
            wanted = disk.needed(recipe, self.sizes, prompts=self._count, image_bytes=seen.image_bytes)
            self.findings += disk.too_full(wanted, self.root, strict=True)

    def served(self, recipe: Recipe, connections: Connections) -> None:
        """The services, and the trial if nothing was found.

        Args:
            recipe: with the addresses of running services.
        """
        self.recipe = recipe
        self.tell("the services")
        try:
            connected(
                recipe,
                self._ask,
                policies=None,
                gate=self._gate,
                connections=connections,
                outage_seconds=_OUTAGE_SECONDS,
                same_pictures=False,
            )
        except SightlineError as error:
            self.findings.append(found_by(error))
        if self.trial.directory is not None and not elsewhere(recipe):
            self.tell("one step of the update, on the sampled prompt")
            with sampler_rests(recipe, connections):
                train_on(self.trial, recipe)
        self.findings += self.trial.findings
        if noise := self.trial.metrics.get("sampled_gap_mean"):
            pairs = self._count * self.trial.pairs
            self.findings += too_small(recipe, self.trial.changes, noise=noise, pairs=pairs)
        known = by_run(recipe, self.root)
        self.duration = known or by_trial(recipe, self.trial, prompts=self._count, held_out=self._held_out)

    def tree(self) -> dict[str, Any]:
        """For JSON. The errors come first: where `ok` is true, all findings are warnings."""
        reckoned: dict[str, Any] | None = None
        if self.sizes is not None and self.memory is not None:
            reckoned = {"model": dict(vars(self.sizes)), **self.memory.tree()}
        return {
            "ok": self.ok,
            "findings": [finding.tree() for finding in self._told()],
            "recipe": self.recipe.model_dump(mode="json"),
            "memory": reckoned,
            "seconds": {
                "check": round(time.monotonic() - self.began, 3),
                **self.duration.tree(),
                "trial": self.trial.metrics,
            },
        }

    def lines(self) -> list[str]:
        """For people: the facts, then a line for each finding."""
        told = []
        if self.sizes is not None:
            told.append(f"model     {self.sizes}")
        if self.memory is not None:
            told.append(f"memory    {memory.gib(self.memory.place.free)} free on {self.memory.place.name}")
            told += [f"          {name} {one}" for name, one in self.memory.processes.items()]
        if gap := self.trial.metrics.get("sampled_gap_max"):
            told.append(f"trial     one step; its log-probs are within {gap:.1g} nats a token of the sampler's")
        elif elsewhere(self.recipe):
            told.append("trial     the update runs elsewhere: it is the run's first stage")
        told.append(f"time      {self.duration}")
        told += [f"{finding.severity:9} {finding.code}: {finding}" for finding in self._told()]
        return [*told, "the run can start" if self.ok else "the run cannot start: fix the errors above"]

    def _told(self) -> list[Finding]:
        return sorted(self.findings, key=lambda finding: finding.severity != "error")

    def _data(self) -> data.Sample | None:
        recipe, seen = self.recipe, None
        pool = self._opened("data.train", recipe.data.train)
        if pool is not None:
            self._count = min(recipe.data.prompts_per_iteration, len(pool))
            seen = self._usable("data.train", data.spread(pool))
            self._prompts = seen.readable
        released = self._opened("data.pairs", recipe.data.pairs) if recipe.data.pairs else None
        if released is not None:
            self._usable("data.pairs", data.spread(released))
        test = self._opened("data.test", recipe.data.test)
        if test is not None:
            rows = test.head(recipe.evaluation.prompts)
            self._usable("data.test", rows[: data.SAMPLED])
            try:
                asked = EvaluationSet.load(side_files(recipe.data.test), rows, recipe.evaluation)
                self._held_out = asked.total + asked.diverse * asked.samples
            except SightlineError as error:
                self.findings.append(found_by(error))
            if pool is not None:
                self.findings += data.held_out(Draws(recipe, pool, released), rows)
        return seen

    def _usable(self, key: str, rows: Sequence[Prompt]) -> data.Sample:
        seen, found = data.usable(key, rows, self._gate, strict=True, whole=self.sizes is not None)
        self.findings += found
        return seen

    def _opened(self, key: str, reference: str) -> Pool | None:
        gate = None if self.sizes is None else self._gate
        try:
            opened = open_preferences if key == "data.pairs" else open_pool
            pool = opened(reference, self.scratch / "images", gate)
        except SightlineError as error:
            self.findings.append(found_by(error))
            return None
        self.findings += data.left_out(key, pool)
        return pool

    async def _ask(self, session: Session) -> None:
        found = await services(session, self._prompts)
        self.findings += found
        if not found:
            self.findings += parts(session)
        if self.ok and self._prompts:
            self.tell("a prompt sampled, scored and paired")
            self.trial = await ask(session, self._prompts, self.scratch / "trial")
            try:
                await session.try_decoding(self._prompts[0])
            except SightlineError as error:
                if error.reason != "POLICY_NOT_SERVED":  # the trial says so
                    self.findings.append(found_by(error, fix="correct evaluation.decoding, or use another engine"))


def _weights(recipe: Recipe) -> int | None:
    """Bytes of a scorer's weights in a local directory; None if unknown."""
    source = recipe.reward.source or ""
    if not source.startswith(("local-dir:", PLAYGROUND)):
        return None
    folder = Path(model_place(source).removeprefix("local-dir:"))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None
