"""Soak: run scorer and sampler at saturation for minutes, and kill Triton and the sampler once a minute.

    make soak                            twenty minutes
    make soak ARGS="--minutes 5"

Requests of every computing kind are sent once on an idle system. Then callers repeat them in an order drawn from a
seed, more at a time than the machine can serve, and compare each answer: candidates must be the same to the token,
log-probs and scores equal within rounding (a batch's rows are summed in another order). Caches are off (embeddings,
image features). Every minute Triton gets SIGKILL, and half a minute later the sampler. Callers wait and retry, so no
call may fail.

Resident memory and descriptors of the scorer, the sampler and the embedded Triton are read every two seconds. They are
flat if the median of a life's last third exceeds that of its second third by at most 5 % or 16 MiB (the larger), and by
at most 16 descriptors. The scorer runs once; for the sampler and Triton, which restart after each kill, the value is
the median over their lives.

Exit code 1 if an answer was wrong, a call failed, or memory or descriptors grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from chaos import House

CALLERS = 24
"""Callers of each service, each with one call at a time."""
SAMPLE_SECONDS = 2.0
KINDS = ("score", "score_many", "embed", "sample", "score_tokens")
LOGPROB, SCORE = 1e-3, 0.02
"""Allowed differences between batches: nats of a token, and points of a CLIPScore (0..100)."""
PATIENCE = 600.0

Ask = Callable[[], Awaitable[Any]]


@dataclass
class Tally:
    """Outcomes of the calls of one kind."""

    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass
class Growth:
    """Memory and descriptors of a process, over its lives or over time."""

    process: str
    before: tuple[float, int] = (0.0, 0)
    after: tuple[float, int] = (0.0, 0)

    @property
    def flat(self) -> bool:
        """Whether its growth is within the bounds (see the module)."""
        more = self.after[0] - self.before[0]
        return (more <= 16 or more <= 0.05 * self.before[0]) and self.after[1] - self.before[1] <= 16


def held(pid: int) -> tuple[float, int] | None:
    """MiB resident and descriptors of a process and its children; None if it has gone."""
    mib, files = 0.0, 0
    try:
        for one in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
            status = Path(f"/proc/{one}/status").read_text()
            resident = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
            mib, files = mib + int(resident.split()[1]) / 1024, files + len(os.listdir(f"/proc/{one}/fd"))
    except (OSError, StopIteration):
        return None
    return mib, files


def requests(clients: tuple[Any, Any], directory: Path, count: int) -> dict[str, list[Ask]]:
    """Calls by kind; each returns its answer as comparable numbers.

    Args:
        clients: of scorer and sampler.
        directory: of a playground dataset.
        count: of each kind.
    """
    scorer, sampler = clients
    rows = [json.loads(line) for line in (directory / "prompts.jsonl").read_text().splitlines()][:count]
    images = [(directory / row["image"]).read_bytes() for row in rows]
    texts = [f"There is a {colour} {shape}." for colour in ("red", "green", "blue") for shape in ("circle", "square")]
    ids: dict[int, list[int]] = {}

    def numbers(result: Any) -> list[float]:
        return [float(value) for value in result.clip_score]

    async def score(at: int) -> list[float]:
        return numbers(await scorer.score(images[at], texts[at % 3 :]))

    async def score_many(at: int) -> list[float]:
        pairs = [(images[(at + step) % count], texts[:3]) for step in (0, 1, 0)]
        return [value async for result in scorer.score_many(pairs) for value in numbers(_good(result))]

    async def embed(at: int) -> list[float]:
        found = await scorer.embed([images[at]], texts[:2])
        rows = np.concatenate([found.image_matrix(), found.text_matrix()])
        return [100 * float(value) for value in rows.ravel()]

    async def sample(at: int) -> list[Any]:
        made = await sampler.sample(images[at], rows[at]["prompt"], 4, seed=at, max_tokens=24)
        ids.setdefault(at, made.candidates[0].token_ids.tolist())
        return [each for one in made.candidates for each in (one.token_ids.tolist(), one.logprobs.tolist())]

    async def score_tokens(at: int) -> list[Any]:
        if at not in ids:
            await sample(at)
        return [(await sampler.score_tokens(images[at], rows[at]["prompt"], ids[at])).logprobs.tolist()]

    asked = {"score": score, "score_many": score_many, "embed": embed, "sample": sample, "score_tokens": score_tokens}
    return {kind: [lambda at=at, ask=ask: ask(at) for at in range(count)] for kind, ask in asked.items()}


def _good(outcome: Any) -> Any:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def equal(kind: str, got: Sequence[Any], meant: Sequence[Any]) -> bool:
    """Whether an answer is the right one."""
    if len(got) != len(meant):
        return False
    if kind not in ("sample", "score_tokens"):
        return bool(np.allclose(got, meant, rtol=0, atol=SCORE))
    for ours, theirs in zip(got, meant, strict=True):
        whole = all(isinstance(value, int) for value in theirs)
        if len(ours) != len(theirs) or (whole and ours != theirs):
            return False
        if not whole and not np.allclose(ours, theirs, rtol=0, atol=LOGPROB):
            return False
    return True


async def soak(house: House, directory: Path, minutes: float, seed: int) -> tuple[dict[str, Tally], list[Growth], Any]:
    """Send calls, kill and check for this many minutes.

    Returns:
        Outcomes of the calls, memory and descriptors of the processes, and how often each was killed.
    """
    from sightline import AsyncSamplerClient, AsyncScorerClient, Patience

    patient = {"timeout": PATIENCE, "patience": Patience(seconds=PATIENCE, per_second=100)}
    tallies = {kind: Tally() for kind in KINDS}
    watch = Watch(house)
    async with (
        AsyncScorerClient(house.address["scorer"], **patient) as scorer,
        AsyncSamplerClient(house.address["sampler"], **patient) as sampler,
    ):
        asked = requests((scorer, sampler), directory, 24)
        meant = {kind: [await ask() for ask in calls] for kind, calls in asked.items()}
        end = time.monotonic() + 60 * minutes

        async def caller(number: int, kinds: Sequence[str]) -> None:
            chance = random.Random(f"{seed}/{number}")
            while time.monotonic() < end:
                kind = chance.choice(kinds)
                at = chance.randrange(len(asked[kind]))
                try:
                    got = await asked[kind][at]()
                except Exception as error:  # any exception means that there is no answer
                    tallies[kind].failed.append(f"{kind} {at}: {type(error).__name__}: {error}")
                    await asyncio.sleep(1)
                    continue
                tallies[kind].answers += 1
                if not equal(kind, got, meant[kind][at]):
                    tallies[kind].wrong.append(f"{kind} {at}: {got} instead of {meant[kind][at]}"[:500])

        async def killer() -> None:
            for number, service in enumerate(("triton", "sampler") * round(minutes)):
                due = end - 60 * minutes + 30 * number + 20
                if due >= end:
                    return
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                watch.killed(service)
                await asyncio.to_thread(house.kill, service)

        async def looker() -> None:
            while time.monotonic() < end:
                watch.look()
                await asyncio.sleep(SAMPLE_SECONDS)

        callers = [caller(number, KINDS[:3]) for number in range(CALLERS)]
        callers += [caller(CALLERS + number, KINDS[3:]) for number in range(CALLERS)]
        await asyncio.gather(killer(), looker(), *callers)
    return tallies, watch.growths(), watch.kills


class Watch:
    """Reads memory and descriptors of the processes."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._lives: dict[str, list[list[tuple[float, int]]]] = {name: [[]] for name in ("scorer", "sampler", "triton")}
        self.kills: Counter[str] = Counter()

    def look(self) -> None:
        """Read them all."""
        for service, lives in self._lives.items():
            found = held(self._pid(service))  # the scorer's child is Triton's guard, whose child is Triton
            if found is not None:
                lives[-1].append(found)

    def killed(self, service: str) -> None:
        """Record the end of a life."""
        self._lives[service].append([])
        self.kills[service] += 1

    def growths(self) -> list[Growth]:
        """Values of each process, over its lives that were long enough."""
        grown = []
        for service, lives in self._lives.items():
            told = [life for life in lives if len(life) >= 6]
            thirds = [len(life) // 3 for life in told]
            before = [_median(life[third : 2 * third]) for life, third in zip(told, thirds, strict=True)]
            after = [_median(life[2 * third :]) for life, third in zip(told, thirds, strict=True)]
            grown.append(Growth(service, _median(before), _median(after)))
        return grown

    def _pid(self, service: str) -> int:
        if service == "triton":
            return self._house.triton()
        try:
            return int(json.loads((self._house.directory / f"{service}.json").read_text())["pid"])
        except (OSError, ValueError):
            return 0  # it is not running


def _median(samples: Sequence[tuple[float, int]]) -> tuple[float, int]:
    return statistics.median(one[0] for one in samples), round(statistics.median(one[1] for one in samples))


def main() -> int:
    """Run the soak and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from sightline_playground.export import export

    with tempfile.TemporaryDirectory(prefix="sightline-soak-") as temporary:
        scratch = Path(temporary)
        export(scratch / "data", split="align", count=24, seed=1)
        house = House(scratch / "services")
        house.settings["scorer"] += ["cache.image_bytes=0", "cache.text_bytes=0", "triton.restart_delay_seconds=0.2"]
        house.settings["sampler"] += ["engine.feature_cache_mib=0"]
        with house:
            tallies, growths, kills = asyncio.run(soak(house, scratch / "data", options.minutes, options.seed))
    print("| call | answers | wrong | failed |\n|---|---|---|---|")
    for kind, tally in tallies.items():
        print(f"| {kind} | {tally.answers} | {len(tally.wrong)} | {len(tally.failed)} |")
        for line in (*tally.wrong[:3], *tally.failed[:3]):
            print(f"  {line}")
    print(
        "\n| process | killed | MiB before | after | descriptors before | after | flat |\n|---|---|---|---|---|---|---|"
    )
    for one in growths:
        (mib, files), (more, others) = one.before, one.after
        flat = "yes" if one.flat else "NO"
        print(f"| {one.process} | {kills[one.process]} | {mib:.0f} | {more:.0f} | {files} | {others} | {flat} |")
    good = all(one.flat for one in growths) and not any(tally.wrong or tally.failed for tally in tallies.values())
    if options.json:
        calls = {kind: asdict(tally) for kind, tally in tallies.items()}
        figures = {"calls": calls, "processes": [asdict(one) for one in growths]}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
