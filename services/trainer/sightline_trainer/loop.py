"""Loop: sample, score, pair, update, publish, evaluate - and again with the new policy.

    prompts + images -> sampler -> K candidates -> scorer -> rewards -> pairs -> DPO -> new policy -> sampler

Each stage leaves whole files in the run directory and is skipped where its files are there, so a run that was killed
goes on where it was. The loop is strictly on-policy: candidates come from the version published last, by name.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
from sightline_chassis.errors import PreconditionFailed
from sightline_sampler.client import PolicyManifest, model_digest, policy_dirname, write_manifest

from sightline_trainer import metrics
from sightline_trainer.connections import Connections
from sightline_trainer.evaluation.evaluate import evaluate
from sightline_trainer.evaluation.exam import Exam
from sightline_trainer.events import Event, Observer, Stage
from sightline_trainer.files import read_json, write_json
from sightline_trainer.pools import open_pool, side_files
from sightline_trainer.prompts import Prompt
from sightline_trainer.recipe import Recipe
from sightline_trainer.rollout import Rollout
from sightline_trainer.runs import RunDirectory
from sightline_trainer.session import Session, connected

T = TypeVar("T")


class Loop:
    """One run. ``run()`` may be called again after anything: it goes on from the files."""

    def __init__(
        self, recipe: Recipe, run: RunDirectory, observer: Observer, connections: Connections | None = None
    ) -> None:
        self.recipe = recipe
        self.dir = run
        self.observer = observer
        self.connections = connections
        if not recipe.sampling.address or not recipe.reward.address:
            raise PreconditionFailed(
                "the recipe names no sampler or no scorer; set sampling.address and reward.address",
                reason="NO_ADDRESS",
            )
        self.train = open_pool(recipe.data.train, run.images)
        test = open_pool(recipe.data.test, run.images)
        self.test = test.head(recipe.evaluation.prompts)
        self.exam = Exam.load(side_files(recipe.data.test), self.test, recipe.evaluation)
        shared = int(np.isin(test.digests, self.train.digests).sum())
        if shared:
            raise PreconditionFailed(
                f"train and test share {shared} prompts by their ids; evaluation must be held out", reason="TEST_LEAKS"
            )

    # The stages, in order ---------------------------------------------------------------------------------------

    def run(self) -> list[dict[str, float]]:
        """Run all iterations.

        Returns:
            What ``metrics.json`` holds: one object per policy version, the base model's first.

        Raises:
            SightlineError: what stopped the run and what to do about it; run again to go on.
        """
        recipe = self.recipe
        self._tell("start", 0, message=f"{recipe.name}: {recipe.iterations} iterations in {self.dir.root}")
        with metrics.run():
            return self._run(recipe)

    def _run(self, recipe: Recipe) -> list[dict[str, float]]:
        table = [self._evaluate(0, version=0, parts={})]
        version = 0
        for iteration in range(1, recipe.iterations + 1):
            version, parts = self._iterate(iteration, version)
            table.append(self._evaluate(iteration, version=version, parts=parts))
            write_json(self.dir.metrics, table)
        self._tell("end", recipe.iterations, message=f"done: {self.dir.metrics}")
        return table

    def _iterate(self, iteration: int, parent: int) -> tuple[int, dict[str, float]]:
        metrics.begin_iteration(iteration, parent)
        directory = self.dir.iteration(iteration)
        finished = read_json(directory / "publish.json")
        if finished is not None and (directory / "evaluation.json").exists():
            return int(finished["version"]), {}
        started = time.monotonic()
        prompts = self._drawn(iteration)
        self._sample(iteration, prompts, parent)
        pairs = self._pair(iteration, prompts, parent)
        version = self._update(iteration, parent)
        self._publish(iteration, version, parent)
        return version, {"pairs": pairs, "seconds": time.monotonic() - started}

    def _sample(self, iteration: int, prompts: list[Prompt], version: int) -> None:
        recipe = self.recipe
        rollout = Rollout(self.dir.iteration(iteration))

        async def collect(session: Session) -> None:
            await session.serve(version, self.dir.policies)
            await rollout.collect(
                prompts,
                session.sources(),
                session.judge(),
                iteration=iteration,
                version=version,
                in_flight=recipe.sampling.max_in_flight,
                progress=lambda done, total: self._tell("sample", iteration, done, total),
            )

        if not (self.dir.iteration(iteration) / "pairs.json").exists():
            self._timed("sample", lambda: connected(recipe, collect, self.connections))

    def _pair(self, iteration: int, prompts: list[Prompt], version: int) -> int:
        from sightline_trainer.pairs.build import PairBuilder, write_pairs

        directory = self.dir.iteration(iteration)
        if not (directory / "pairs.json").exists():
            recipe = self.recipe
            builder = PairBuilder(recipe.filters.chosen(), recipe.pairing.chosen(), iteration=iteration)
            rows = builder.build({prompt.id: prompt for prompt in prompts}, Rollout(directory).read())
            path = directory / "pairs.parquet"
            if not write_pairs(path, self._with_buffer(metrics.observed(rows, version), builder.counts, iteration)):
                path.unlink()
                raise PreconditionFailed(
                    f"iteration {iteration} has no pair to learn from: {dict(builder.counts)}; loosen `filters` or "
                    "sample more",
                    reason="NO_PAIRS",
                )
            write_json(directory / "pairs.json", builder.counts)
        counts = read_json(directory / "pairs.json")
        metrics.count_pairs(counts)
        self._tell("pair", iteration, metrics=counts)
        return int(counts["pairs"])

    def _with_buffer(
        self, rows: Iterator[dict[str, Any]], counts: Counter[str], iteration: int
    ) -> Iterator[dict[str, Any]]:
        """Fresh pairs, then pairs of earlier iterations where the recipe has a buffer."""
        yield from rows
        buffer = self.recipe.candidates.chosen().get("buffer")
        if buffer is not None:
            earlier = [self.dir.iteration(number) / "pairs.parquet" for number in range(1, iteration)]
            for row in buffer.draw(earlier, counts["pairs"], seed=self.recipe.seed + iteration):
                counts["pairs"] += 1
                counts["pairs_of_earlier_iterations"] += 1
                yield row

    def _update(self, iteration: int, parent: int) -> int:
        directory = self.dir.iteration(iteration)
        known = read_json(directory / "update.json")
        if known is not None:
            return int(known["version"])
        from sightline_trainer.dpo.launch import run_update

        version = self.dir.next_version(max(parent, connected(self.recipe, Session.highest_version, self.connections)))
        aside = self.dir.policies / f".{policy_dirname(version)}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        result = self._timed(
            "update",
            lambda: run_update(
                self.recipe,
                directory / "pairs.parquet",
                previous=self.dir.policies / policy_dirname(parent) if parent else None,
                policy=aside,
                work=self.dir.root / "trl",
                seed=self.recipe.seed + iteration,
                iteration=iteration,
                progress=lambda done, total: self._tell("update", iteration, done, total),
            ),
        )
        manifest = PolicyManifest(
            version=version,
            parent_version=parent,
            kind=self.recipe.dpo.train,
            base_digest=model_digest(self.recipe.model),
            run_id=self.dir.id,
            iteration=iteration,
            metrics=result.metrics,
        )
        final = self.dir.policies / policy_dirname(version)
        aside.rename(final)
        write_manifest(final, manifest)
        write_json(
            directory / "update.json",
            {"version": version, "metrics": result.metrics, "probes": [asdict(probe) for probe in result.probes]},
        )
        metrics.record_update(version, result.metrics)
        self._tell("update", iteration, metrics=result.metrics)
        return version

    def _publish(self, iteration: int, version: int, parent: int) -> None:
        from sightline_trainer.dpo.update import Probe
        from sightline_trainer.publish import publish

        known = read_json(self.dir.iteration(iteration) / "update.json")
        prompts = {prompt.id: prompt for prompt in self._drawn(iteration)}

        async def send(session: Session) -> dict[str, float]:
            await session.serve(parent, self.dir.policies)
            arrival = await publish(
                session.sampler,
                self.dir.policies / policy_dirname(version),
                version=version,
                previous=parent,
                probes=[Probe(**probe) for probe in known["probes"]],
                prompts=prompts,
                settings=self.recipe.publication,
            )
            return asdict(arrival)

        arrival = self._timed("publish", lambda: connected(self.recipe, send, self.connections))
        write_json(self.dir.iteration(iteration) / "publish.json", arrival)
        metrics.record_arrival(version, arrival["gap"])
        self._tell("publish", iteration, metrics=arrival)

    def _evaluate(self, iteration: int, *, version: int, parts: dict[str, float]) -> dict[str, float]:
        path = self.dir.iteration(iteration) / "evaluation.json"
        if path.exists():
            known = dict(read_json(path))
            metrics.record_evaluation(version, _measured(known))
            return known
        started = time.monotonic()

        async def measure(session: Session) -> dict[str, float]:
            await session.serve(version, self.dir.policies)
            evaluated = await evaluate(
                self.exam,
                session.evaluation,
                session.reward,
                version=version,
                in_flight=self.recipe.sampling.max_in_flight,
                progress=lambda done, total: self._tell("evaluate", iteration, done, total),
            )
            return evaluated.write(path.parent, base=self.dir.iteration(0) if iteration else None)

        measured = self._timed("evaluate", lambda: connected(self.recipe, measure, self.connections))
        row = {
            "iteration": iteration,
            "policy_version": version,
            **measured,
            "pairs": parts.get("pairs", 0),
            "seconds": round(parts.get("seconds", 0.0) + time.monotonic() - started, 3),
        }
        write_json(path, row)
        metrics.record_evaluation(version, measured)
        self._tell("iteration", iteration, metrics=row)
        return row

    # What the stages stand on -----------------------------------------------------------------------------------

    def _drawn(self, iteration: int) -> list[Prompt]:
        return self.train.draw(self.recipe.data.prompts_per_iteration, iteration=iteration, seed=self.recipe.seed)

    def _timed(self, stage: Stage, work: Callable[[], T]) -> T:
        with metrics.phase(stage):
            return work()

    def _tell(self, stage: Stage, iteration: int, done: int = 0, total: int = 0, **facts: Any) -> None:
        metrics.heartbeat(stage, done, total)
        self.observer(Event(stage=stage, iteration=iteration, done=done, total=total, **facts))


def _measured(row: dict[str, float]) -> dict[str, float]:
    """What was measured, of a row of metrics.json."""
    return {
        name: value for name, value in row.items() if name not in ("iteration", "policy_version", "pairs", "seconds")
    }
