"""Loop: sample, score, pair, update, publish, evaluate - and again with the new policy.

    prompts + images -> sampler -> K candidates -> scorer -> rewards -> pairs -> DPO -> new policy -> sampler

Each stage leaves complete files in the run directory and is skipped if its files exist, so a killed run continues where
it stopped. Candidates come from one named version: strictly on-policy from the last published one; with
`sampling.staleness: 1` from the one before it, sampled while the update trained. The version depends only on the
iteration, so a run that was killed at any point has the same candidates as one that was not.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from sightline.errors import PreconditionFailed
from sightline.sampler import PolicyManifest, Probe, model_digest, policy_dirname, write_manifest
from sightline_chassis import traces

from sightline_trainer import metrics
from sightline_trainer.ahead import Ahead
from sightline_trainer.connections import Connections
from sightline_trainer.dpo.open_losses import check_bound
from sightline_trainer.draws import Draws
from sightline_trainer.dropped import DroppedRows, summary_of
from sightline_trainer.embeddings import embeddings
from sightline_trainer.evaluation.evaluate import evaluate
from sightline_trainer.evaluation.evaluation_set import EvaluationSet
from sightline_trainer.events import LEFT_OUT, Event, Observer, Stage
from sightline_trainer.files import read_json, sync_directory, write_json
from sightline_trainer.left_out import askable, counts_of, first_passing, no_pairs
from sightline_trainer.pairs.preferred import preferred
from sightline_trainer.pools import hold_out, open_pool, side_files
from sightline_trainer.pools.preferences import open_preferences
from sightline_trainer.preflight.begin import begin
from sightline_trainer.preflight.finding import refuse
from sightline_trainer.preflight.trial import TRIES, ask, elsewhere, train_on
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.released_pairs import ReleasedPairs
from sightline_trainer.rollout import Rollout
from sightline_trainer.row_gate import RowGate
from sightline_trainer.runs import RunDirectory
from sightline_trainer.serving import RunPolicies
from sightline_trainer.session import Session, connected
from sightline_trainer.steps import last_step
from sightline_trainer.stopwatch import Stopwatch
from sightline_trainer.turns import sampler_rests, wake

T = TypeVar("T")


class Loop:
    """One run. `run()` may be called again at any time: it continues from the files."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunDirectory,
        observer: Observer,
        connections: Connections | None = None,
        halt: Callable[[], None] = lambda: None,
    ) -> None:
        self.recipe = recipe
        self.dir = run
        self.observer = observer
        self.connections = connections
        self.halt = halt
        self._stopwatch = Stopwatch(run.iteration(0) / "seconds.json")
        if not recipe.sampling.address or not recipe.reward.address:
            raise PreconditionFailed(
                "the recipe names no sampler or no scorer; set sampling.address and reward.address",
                reason="NO_ADDRESS",
            )
        for table in recipe.parts:
            table.usable()
        check_bound(recipe.dpo.loss, recipe.dpo.opened_losses)
        self.gate = RowGate(recipe.processor)
        self.train = open_pool(recipe.data.train, run.images, self.gate)
        test = open_pool(recipe.data.test, run.images, self.gate)
        self.test, left_out = first_passing(test, recipe.evaluation.prompts, self.gate)
        held_out = EvaluationSet.load(side_files(recipe.data.test), self.test, recipe.evaluation)
        self.held_out = askable(held_out, self.gate, left_out)
        self._rows = {"data.train": self.train.dropped, "data.test": left_out}
        released = open_preferences(recipe.data.pairs, run.images, self.gate) if recipe.data.pairs else None
        if released is not None:
            self._rows["data.pairs"] = released.dropped
        self.draws = Draws(recipe, self.train, released)
        hold_out(self.draws.all(), self.test)

    # The stages, in order ---------------------------------------------------------------------------------------

    def run(self) -> list[dict[str, float]]:
        """Run all iterations.

        Returns:
            The content of `metrics.json`: one object per policy version, the base model's first.

        Raises:
            SightlineError: what stopped the run and what to do about it; run again to continue.
        """
        recipe = self.recipe
        from sightline_trainer.dpo.device import check_device

        self._tell("start", 0, message=f"{recipe.name}: {recipe.iterations} iterations in {self.dir.root}")
        if where := check_device(recipe):
            self._tell("start", 0, message=where)
        self._tell_rows()
        with metrics.run():
            return self._run(recipe)

    def _run(self, recipe: Recipe) -> list[dict[str, float]]:
        if not self._finished():
            self._preflight()
        table = [self._evaluate(0, version=0, pairs=0)]
        version = before = 0  # the last published version, and the one before it
        for iteration in range(1, recipe.iterations + 1):
            sampled_by = before if recipe.sampling.staleness else version
            before, (version, pairs) = version, self._iterate(iteration, version, sampled_by)
            table.append(self._evaluate(iteration, version=version, pairs=pairs))
            write_json(self.dir.metrics, table)
        if not recipe.iterations:
            if not recipe.evaluation.decoding.plain:
                table.append(self._evaluate(1, version=0, pairs=0))
            write_json(self.dir.metrics, table)
        self._tell("end", recipe.iterations, message=f"done: {self.dir.metrics}")
        return table

    def _preflight(self) -> None:
        """Report warnings; raise errors that would end the run."""
        warnings = self._connected(lambda session: begin(session, self.train), self.halt)
        for finding in warnings:
            self._tell("start", 0, message=f"{finding.code}: {finding}")
        if not elsewhere(self.recipe) or (self.dir.iteration(1) / "update.json").exists():
            return
        # `--check` can't try an update on another machine, so it is tried now, before any sampling.
        scratch = self.dir.root / ".trial"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            trial = self._connected(lambda session: ask(session, self.train.head(TRIES), scratch), self.halt)
            if trial.directory is not None:
                train_on(trial, self.recipe, halt=self.halt)
            refuse(trial.findings)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _finished(self) -> bool:
        """Whether no service is needed any longer."""
        last = self.recipe.iterations or int(not self.recipe.evaluation.decoding.plain)
        rows = [self.dir.iteration(number) for number in range(last + 1)]
        return all((each / "evaluation.json").exists() for each in rows)

    def _iterate(self, iteration: int, parent: int, sampled_by: int) -> tuple[int, int]:
        """The published version, and the number of its pairs."""
        metrics.begin_iteration(iteration, parent)
        directory = self.dir.iteration(iteration)
        finished = read_json(directory / "publish.json")
        if finished is not None and (directory / "evaluation.json").exists():
            return int(finished["version"]), int(read_json(directory / "pairs.json")["pairs"])
        self._stopwatch = Stopwatch(directory / "seconds.json")
        write_json(
            directory / "rollout.json",
            {"sampled_by": sampled_by, "trained_on": parent, "lag": self.recipe.sampling.staleness if parent else 0},
        )
        self._sample(iteration, sampled_by, self.halt)
        pairs = self._pair(iteration, parent)
        number = self._number(iteration, parent)
        with Ahead(self._next_rollout(iteration + 1, parent), self.halt):
            version = self._update(iteration, parent, number)
        self._publish(iteration, version, parent)
        return version, pairs

    def _next_rollout(self, iteration: int, version: int) -> Callable[[Callable[[], None]], None] | None:
        """The sampling of the next iteration, if the recipe lets it run ahead."""
        if not self.recipe.sampling.staleness or iteration > self.recipe.iterations:
            return None
        return lambda halt: self._sample(iteration, version, halt)

    def _sample(self, iteration: int, version: int, halt: Callable[[], None]) -> None:
        recipe = self.recipe
        directory = self.dir.iteration(iteration)
        rollout, prompts = Rollout(directory), self.draws.asked(iteration)
        released = ReleasedPairs(directory, self.draws.released(iteration), iteration)

        def told(first: int) -> Callable[[int, int], None]:
            total = len(prompts) + len(released.rows)
            return lambda done, _: self._tell("sample", iteration, first + done, total)

        async def collect(session: Session) -> None:
            if recipe.sampling.rests:  # a trainer that was killed during an update left it resting
                await wake(session)
            await session.serve(version)
            await released.collect(session, version, told(0))
            await rollout.collect(
                prompts,
                session.sources(),
                session.judge(),
                self.gate,
                iteration=iteration,
                version=version,
                in_flight=await session.in_flight(),
                progress=told(len(released.rows)),
            )

        whole = rollout.complete(prompts) and released.complete()
        if not (directory / "pairs.json").exists() and not whole:
            self._timed("sample", lambda: self._connected(collect, halt))
            dropped = [*rollout.dropped(), *released.rollout.dropped()]
            self._tell_left_out("sample", iteration, counts_of(dropped), dropped)

    def _pair(self, iteration: int, version: int) -> int:
        from sightline_trainer.pairs.build import PairBuilder, write_pairs
        from sightline_trainer.pairs.guarded import filters_of, rules_of

        directory = self.dir.iteration(iteration)
        if not (directory / "pairs.json").exists():
            recipe, rollout = self.recipe, Rollout(directory)
            dropped, prompts = rollout.dropped(), self.draws.asked(iteration)
            released = ReleasedPairs(directory, self.draws.released(iteration), iteration)
            filters = filters_of(recipe.filters)
            known = self._embeddings([*prompts, *released.rows])
            builder = PairBuilder(
                filters,
                rules_of(recipe.pairing),
                iteration=iteration,
                own="optimism" in recipe.dpo.loss,
                embeddings=known,
            )
            builder.counts.update(counts_of(dropped))
            fresh = builder.build({prompt.id: prompt for prompt in prompts}, rollout.read())
            rows = chain(released.pairs(filters, builder, known), fresh)
            path = directory / "pairs.parquet"
            if not write_pairs(path, self._with_buffer(metrics.observed(rows, version), builder.counts, iteration)):
                path.unlink()
                dropped = [*dropped, *released.rollout.dropped()]
                total = len(prompts) + len(released.rows)
                error = no_pairs(iteration, total, builder.counts, dropped, builder.unscored)
                for each in (rollout, released.rollout):
                    if error.reason == "NOTHING_SCORED":  # a term may be mended when the run continues
                        each.forget_scores()
                    elif error.reason != "NO_PAIRS":  # an unmounted disk may be back
                        each.forget()
                raise error
            write_json(directory / "pairs.json", builder.counts)
        counts = read_json(directory / "pairs.json")
        metrics.count_pairs(counts)
        self._tell("pair", iteration, metrics=counts)
        return int(counts["pairs"])

    def _embeddings(self, prompts: Sequence[Prompt]) -> Mapping[str, Sequence[float]]:
        """The scorer's embeddings of the pictures, if the loss needs them."""
        if "rpo" not in self.recipe.dpo.loss:
            return {}
        return self._connected(lambda session: embeddings(session, prompts), self.halt)

    def _with_buffer(
        self, rows: Iterator[dict[str, Any]], counts: Counter[str], iteration: int
    ) -> Iterator[dict[str, Any]]:
        """Fresh pairs, then pairs of earlier iterations if the recipe has a buffer."""
        yield from rows
        buffer = self.recipe.candidates.chosen().get("buffer")
        if buffer is not None:
            earlier = [self.dir.iteration(number) / "pairs.parquet" for number in range(1, iteration)]
            for row in buffer.draw(earlier, counts["pairs"], seed=self.recipe.seed + iteration):
                counts["pairs"] += 1
                counts["pairs_of_earlier_iterations"] += 1
                yield row

    def _number(self, iteration: int, parent: int) -> int:
        """The version of an iteration's policy: its own if it has one, otherwise an unused one."""
        known = read_json(self.dir.iteration(iteration) / "update.json")
        if known is not None:
            return int(known["version"])
        return self.dir.next_version(max(parent, self._connected(Session.highest_version, self.halt)))

    def _update(self, iteration: int, parent: int, version: int) -> int:
        directory = self.dir.iteration(iteration)
        final = self.dir.policies / policy_dirname(version)
        aside = self.dir.policies / f".{policy_dirname(version)}"
        if (directory / "update.json").exists() and (aside.exists() or final.exists()):
            self._put_in_place(aside, final)
            return version
        from sightline_trainer.dpo.checkpoints import forget
        from sightline_trainer.dpo.kept_pairs import left_out_file
        from sightline_trainer.dpo.launch import run_update

        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        steps = self.dir.root / "trl" / f"steps-{iteration:04d}.jsonl"
        with sampler_rests(self.recipe, self.connections, self.halt):
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
                    progress=lambda done, total: self._tell("update", iteration, done, total, metrics=last_step(steps)),
                    candidates=directory / "candidates",
                    version=parent,
                    halt=self.halt,
                    gate=self.gate,
                ),
            )
        left_out = DroppedRows.read(left_out_file(directory / "pairs.parquet"))
        metrics.count_left_out("pair", left_out.counts)
        self._tell_left_out("update", iteration, left_out.counts, left_out.rows)
        manifest = PolicyManifest(
            version=version,
            parent_version=parent,
            kind=self.recipe.dpo.train,
            base_digest=model_digest(self.recipe.base_model),
            run_id=self.dir.namespace,
            iteration=iteration,
            metrics=result.metrics,
        )
        write_manifest(aside, manifest)
        # From here on the policy is complete: if the run is killed before the rename, it does the rename when it
        # continues.
        write_json(
            directory / "update.json",
            {"version": version, "metrics": result.metrics, "probes": [asdict(probe) for probe in result.probes]},
        )
        self._put_in_place(aside, final)
        forget(self.dir.root / "trl")
        metrics.record_update(version, result.metrics)
        self._tell("update", iteration, metrics=result.metrics)
        return version

    @staticmethod
    def _put_in_place(aside: Path, final: Path) -> None:
        if not final.exists():
            aside.rename(final)
            sync_directory(final.parent)

    def _publish(self, iteration: int, version: int, parent: int) -> None:
        from sightline_trainer.dpo.probing import UpdateProbe
        from sightline_trainer.publish import publish

        known = read_json(self.dir.iteration(iteration) / "update.json")
        prompts = self.draws.named(iteration)

        async def send(session: Session) -> dict[str, float]:
            arrival = await publish(
                session.sampler,
                self._policies(),
                version=version,
                previous=parent,
                probes=[UpdateProbe(**probe) for probe in known["probes"]],
                prompts=prompts,
                settings=self.recipe.publication,
            )
            # The correlation is 0 if it is unknown.
            facts = {"gap": arrival.gap, "moved": arrival.moved, "correlation": arrival.correlation or 0.0}
            return {"version": version, **facts}

        if (self.dir.iteration(iteration) / "publish.json").exists():
            return
        arrival = self._timed("publish", lambda: self._connected(send, self.halt))
        write_json(self.dir.iteration(iteration) / "publish.json", arrival)
        metrics.record_arrival(version, arrival["gap"])
        self._tell("publish", iteration, metrics=arrival)

    def _evaluate(self, iteration: int, *, version: int, pairs: int) -> dict[str, float]:
        path = self.dir.iteration(iteration) / "evaluation.json"
        if path.exists():
            known = dict(read_json(path))
            metrics.record_evaluation(version, _measured(known))
            return known

        async def measure(session: Session) -> dict[str, float]:
            await session.serve(version)
            if iteration == 0:
                await session.try_decoding(self.held_out.prompts[0])
            plain = iteration == 0 or self.recipe.evaluation.decoding.plain
            evaluated = await evaluate(
                self.held_out,
                session.evaluation if plain else session.decoded(),
                session.reward,
                version=version,
                in_flight=await session.in_flight(),
                progress=lambda done, total: self._tell("evaluate", iteration, done, total),
            )
            gone = evaluated.dropped
            metrics.count_left_out("held_out", gone.counts)
            self._tell_left_out("evaluate", iteration, gone.counts, gone.rows)
            return evaluated.write(path.parent, base=self.dir.iteration(0) if iteration else None)

        measured = self._timed("evaluate", lambda: self._connected(measure, self.halt))
        row = {
            "iteration": iteration,
            "policy_version": version,
            **measured,
            **preferred(path.parent / "pairs.parquet"),
            "pairs": pairs,
            "seconds": self._stopwatch.seconds,
        }
        write_json(path, row)
        metrics.record_evaluation(version, measured)
        self._tell("iteration", iteration, metrics=row)
        return row

    # What the stages use -----------------------------------------------------------------------------------

    def _policies(self) -> RunPolicies:
        files = self.recipe.publication.files
        return RunPolicies(self.dir.policies, self.dir.namespace, files, probes=self._probes)

    def _probes(self, version: int) -> list[Probe]:
        """The probes for a version of this run."""
        from sightline_trainer.dpo.probing import UpdateProbe
        from sightline_trainer.publish import sendable

        for iteration in range(1, self.recipe.iterations + 1):
            known = read_json(self.dir.iteration(iteration) / "update.json")
            if known is not None and known["version"] == version:
                prompts = self.draws.named(iteration)
                return sendable([UpdateProbe(**probe) for probe in known["probes"]], prompts)
        return []

    def _connected(self, work: Callable[[Session], Coroutine[Any, Any, T]], halt: Callable[[], None]) -> T:
        return connected(
            self.recipe,
            work,
            policies=self._policies(),
            gate=self.gate,
            connections=self.connections,
            halt=halt,
        )

    def _tell_rows(self) -> None:
        """Report which rows of the datasets were left out, and record it in the run."""
        found = {key: dropped for key, dropped in self._rows.items() if dropped}
        path = self.dir.root / "dropped.json"
        if found:
            write_json(path, {key: dropped.as_json() for key, dropped in found.items()})
        else:
            path.unlink(missing_ok=True)
        for key, dropped in found.items():
            metrics.count_left_out("row", dropped.counts)
            self._tell_left_out("start", 0, dropped.counts, dropped.rows, of=f" of {key}")

    def _tell_left_out(
        self, stage: Stage, iteration: int, counts: Counter[str], rows: Sequence[Mapping[str, str]], of: str = ""
    ) -> None:
        if counts:
            message = f"{counts.total()} rows{of} were left out: {summary_of(counts, rows)}"
            facts = {LEFT_OUT: counts.total(), **{f"left_out_{key.lower()}": each for key, each in counts.items()}}
            self._tell(stage, iteration, message=message, metrics=facts)

    def _timed(self, stage: Stage, work: Callable[[], T]) -> T:
        with metrics.phase(stage), traces.span(stage, **{"sightline.run": self.dir.id}):
            try:
                return work()
            finally:
                if self.dir.root.exists():  # it would be made again
                    self._stopwatch.save()

    def _tell(self, stage: Stage, iteration: int, done: int = 0, total: int = 0, **facts: Any) -> None:
        metrics.heartbeat(stage, done, total)
        self._stopwatch.tick()
        self.observer(Event(stage=stage, iteration=iteration, done=done, total=total, **facts))


def _measured(row: dict[str, float]) -> dict[str, float]:
    """The measured values in a row of metrics.json."""
    of_the_run = ("iteration", "policy_version", "pairs", "pairs_length", "pairs_wording", "seconds")
    return {name: value for name, value in row.items() if name not in of_the_run}
