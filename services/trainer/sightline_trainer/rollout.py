"""Rollout: candidates and their rewards for an iteration's prompts, shard by shard.

Scoring overlaps sampling: prompts are scored in small groups as soon as they are sampled. A finished shard is on disk,
so a killed run loses only unfinished shards. A prompt that can't be answered (a damaged image, a text that is too long)
is dropped and recorded, and so is a candidate that the gate refuses: neither may end a run of days.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sightline.errors import InvalidInput

from sightline_trainer.candidates.source import Source, SourceRequest
from sightline_trainer.files import damaged, read_json, read_table, write_json, write_whole
from sightline_trainer.records.prompt import PROMPT_REASONS, Prompt
from sightline_trainer.records.refusal import Refusal
from sightline_trainer.records.response import CANDIDATE_SCHEMA, Response
from sightline_trainer.records.score import SCORE_SCHEMA, UNSCORED, Score
from sightline_trainer.rewards.judge import Judge
from sightline_trainer.row_gate import RowGate
from sightline_trainer.together import Together

Held = dict[str, list[Response]]
"""Candidates by prompt id."""


class Rollout:
    """Fills and reads `candidates/` and `scores/` of one iteration's directory."""

    def __init__(self, directory: Path, *, shard_size: int = 128) -> None:
        self.directory = directory
        self.shard_size = shard_size

    def _shards(self, prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
        return [prompts[i : i + self.shard_size] for i in range(0, len(prompts), self.shard_size)]

    def complete(self, prompts: Sequence[Prompt]) -> bool:
        """Whether every shard exists."""
        return all(self._paths(number)[1].exists() for number, _ in enumerate(self._shards(prompts)))

    def _dropped(self, shard: int) -> Path:
        return self.directory / "dropped" / f"{shard:05d}.json"

    def _paths(self, shard: int) -> tuple[Path, Path]:
        name = f"{shard:05d}.parquet"
        return self.directory / "candidates" / name, self.directory / "scores" / name

    async def collect(
        self,
        prompts: Sequence[Prompt],
        sources: Sequence[Source],
        judge: Judge,
        gate: RowGate,
        *,
        iteration: int,
        version: int,
        in_flight: int,
        progress: Callable[[int, int], None],
    ) -> None:
        """Let every source make candidates for each prompt, and score them; existing shards are kept, and of shards
        without scores the candidates.

        Raises:
            SightlineError: a service stays unavailable, or refuses something other than a prompt; the sampler has
                another chat template than the recipe (CHAT_TEMPLATE_DIFFERS).
        """
        shards = self._shards(prompts)
        slots, together, done = asyncio.Semaphore(in_flight), Together(), 0

        async def made_for(prompt: Prompt, dropped: list[dict[str, str]]) -> list[Response]:
            made: list[Response] = []
            refuse(await asyncio.to_thread(gate.asked, prompt))
            for source in sources:
                for each in await source(prompt, SourceRequest(iteration, version, tuple(made))):
                    gate.rendered(prompt, each)
                    made.append(replace(each, fault=each.fault or gate.candidate(each)))
            kept = [each for each in made if each.fault is None]
            faults = [(each, each.fault) for each in made if each.fault is not None]
            dropped += [_dropped(prompt, fault, each) for each, fault in faults]
            if faults and not kept:
                refuse(faults[0][1])
            return kept

        async def one(prompt: Prompt, dropped: list[dict[str, str]], held: Held | None) -> list[Response]:
            nonlocal done
            made: list[Response] = []
            scores: list[Score] = []
            try:
                async with slots:
                    with together.on_the_way():
                        made = await made_for(prompt, dropped) if held is None else held.get(prompt.id, [])
                    await together()
                    scores = await judge(prompt, made, version=version)
            except InvalidInput as error:
                if not error.reason.startswith(PROMPT_REASONS):
                    raise
                made = []
                dropped.append(_dropped(prompt, Refusal(error.reason, error.message)))
            done += 1
            progress(done, len(prompts))
            return [replace(each, score=score) for each, score in zip(made, scores, strict=True)]

        async def fill(number: int, shard: Sequence[Prompt]) -> None:
            held = self._held(number)
            dropped: list[dict[str, str]] = [] if held is None else read_json(self._dropped(number)) or []
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(prompt, dropped, held)) for prompt in shard]
            if dropped:
                write_json(
                    self._dropped(number), sorted(dropped, key=lambda one: (one["prompt_id"], one.get("index", "")))
                )
            else:
                self._dropped(number).unlink(missing_ok=True)
            self._write(number, [scored for task in tasks for scored in task.result()])

        missing = [(number, shard) for number, shard in enumerate(shards) if not self._paths(number)[1].exists()]
        done = len(prompts) - sum(len(shard) for _, shard in missing)
        # One shard more than the engines hold keeps them busy while the oldest ends; memory stays bounded.
        open_shards = asyncio.Semaphore(1 + math.ceil(in_flight / self.shard_size))

        async def admitted(number: int, shard: Sequence[Prompt]) -> None:
            async with open_shards:
                await fill(number, shard)

        async with asyncio.TaskGroup() as group:
            for number, shard in missing:
                group.create_task(admitted(number, shard))

    def _write(self, number: int, rows: Sequence[Response]) -> None:
        candidates_path, scores_path = self._paths(number)
        candidates = pa.Table.from_pylist([row.row() for row in rows], CANDIDATE_SCHEMA)
        scores = pa.Table.from_pylist(
            [{"prompt_id": row.prompt_id, "index": row.index, **row.score.row()} for row in rows],
            SCORE_SCHEMA,
        )
        write_whole(candidates_path, lambda aside: pq.write_table(candidates, aside))
        write_whole(scores_path, lambda aside: pq.write_table(scores, aside))

    def dropped(self) -> list[dict[str, str]]:
        """The dropped rows: `prompt_id`, `reason` and `message`; for a candidate also its `source` and `index`."""
        return [each for path in sorted((self.directory / "dropped").glob("[0-9]*.json")) for each in read_json(path)]

    def _held(self, number: int) -> Held | None:
        """The candidates of a shard that lacks only its scores, by prompt; None if it has none."""
        path = self._paths(number)[0]
        if not path.exists():
            return None
        held: Held = {}
        for row in read_table(path).to_pylist():
            held.setdefault(row["prompt_id"], []).append(Response.of(row, UNSCORED))
        return held

    def forget_scores(self) -> None:
        """Delete all scores, so that the same candidates are scored again."""
        shutil.rmtree(self.directory / "scores", ignore_errors=True)

    def forget(self) -> None:
        """Delete all shards, so that they are made again."""
        for name in ("scores", "candidates", "dropped"):
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def read(self) -> Iterator[tuple[str, list[Response]]]:
        """(prompt id, its candidates with their rewards) in file order, one shard in memory at a time."""
        for path in sorted((self.directory / "scores").glob("[0-9]*.parquet")):
            groups: dict[str, list[Response]] = {}
            candidates = read_table(self.directory / "candidates" / path.name).to_pylist()
            for row, score in zip(candidates, read_table(path).to_pylist(), strict=True):
                if (row["prompt_id"], row["index"]) != (score.pop("prompt_id"), score.pop("index")):
                    raise damaged(path, "its rows are not those of the candidates' file with the same name")
                groups.setdefault(row["prompt_id"], []).append(Response.of(row, Score.of(score)))
            yield from groups.items()


def refuse(fault: Refusal | None) -> None:
    """Raise InvalidInput if the gate refused the row."""
    if fault is not None:
        raise InvalidInput(fault.message, reason=fault.reason)


def _dropped(prompt: Prompt, fault: Refusal, candidate: Response | None = None) -> dict[str, str]:
    of = {} if candidate is None else {"source": candidate.source, "index": str(candidate.index)}
    return {"prompt_id": prompt.id, **of, "reason": fault.reason, "message": fault.message[:500]}
