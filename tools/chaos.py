"""Chaos: kill -9 of a service at random moments, again and again, during small runs of the loop.

    make chaos                                              20 kills of each of trainer, sampler, scorer and triton
    python tools/chaos.py --services trainer --kills 10     fewer
    make chaos ARGS="--fleet 4"                             kill -9 of one of four samplers, 20 times
    make chaos ARGS="--scratch DIR"                         begun there, or gone on with: runs that ended are kept

One run is left alone first. Each disturbed run must end with the same pairs (prompts, texts, token ids, rules; none
lost, none doubled), no policy version may ever stand for two different policies, and every candidate must be of the
version that it was to be sampled by. Whoever is killed is started again at once, as a supervisor would: the trainer on
its run directory, sampler and scorer on their ports, a member of a fleet while the others go on, Triton by the scorer
that embeds it. Moments are drawn from a seed, as shares of the time that the undisturbed run took (by one sampler, also
before a fleet); what they hit is up to the machine. A life of the trainer is a process forked from this one, so that
its imports are paid once.

Exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "playground/weights"
SERVICES = ("trainer", "sampler", "scorer", "triton")
LIVES = 60
"""A run that needs more of them does not come forward."""
SCORES = ("images", "chosen_policy_version", "rejected_policy_version", "chosen_reward", "rejected_reward", "margin")
"""Columns that may differ: versions are the run's own, rewards differ in their last bits with what else was scored."""


@dataclass
class Row:
    """What became of the runs in which one service was killed."""

    service: str
    kills: int = 0
    runs: int = 0
    resumed: int = 0
    errors: list[str] = field(default_factory=list)
    pairs: int = 0
    pairs_equal: bool = True
    versions_unique: bool = True
    versions_right: bool = True
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return self.pairs_equal and self.versions_unique and self.versions_right and not self.errors


class House:
    """Sampler and scorer on loopback, killed and started again on their ports; of `fleet` samplers, one by chance."""

    def __init__(self, directory: Path, fleet: int = 1) -> None:
        from sightline_cli.processes import Processes

        self.processes = Processes(directory)
        self.others = [Processes(directory / f"sampler-{number}") for number in range(1, fleet)]
        self._ports: list[int] = []
        self._chance = random.Random(fleet)
        self.settings = {
            "sampler": [f"engine.model={WEIGHTS / 'llava'}", "engine.threads=1"],
            "scorer": [
                f"models.clip.source=local-dir:{WEIGHTS / 'clip'}",
                "triton.threads=1",
                "triton.start_timeout_seconds=900",
            ],
        }
        self.directory = directory
        self.address: dict[str, str] = {}

    def __enter__(self) -> House:
        self.processes.__enter__()
        for name, settings in self.settings.items():
            self.processes.start(name, settings)
        for other in self.others:
            other.__enter__()
            other.start("sampler", self.settings["sampler"])
        self.address = {name: self.processes.wait(name, seconds=600).grpc for name in self.settings}
        found = [self.address["sampler"], *(other.wait("sampler", seconds=600).grpc for other in self.others)]
        self._ports = [int(address.rsplit(":", 1)[1]) for address in found]
        self.fleet = "ipv4:" + ",".join(found)
        return self

    def __exit__(self, *error: Any) -> None:
        for processes in (self.processes, *self.others):
            processes.stop()

    def kill(self, service: str) -> None:
        """SIGKILL, and a new one in its place."""
        if service == "triton":
            before = self.triton()
            os.kill(before, signal.SIGKILL)
            until(lambda: self.triton() not in (0, before))
            return
        member = self._chance.randrange(len(self._ports)) if service == "sampler" else 0
        processes = (self.processes, *self.others)[member]
        port = self._ports[member] if service == "sampler" else int(self.address[service].rsplit(":", 1)[1])
        pid = json.loads((processes.directory / f"{service}.json").read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
        processes.wait_end(service)
        processes.start(service, self.settings[service], port=port)
        if len(self._ports) == 1 or service != "sampler":
            processes.wait(service, seconds=600)
        else:
            until((processes.directory / "sampler.json").exists)

    def triton(self) -> int:
        """The pid of the scorer's Triton, which has a guard above it; 0 while there is none."""
        scorer = json.loads((self.directory / "scorer.json").read_text())["pid"]
        parents: dict[int, int] = {}
        servers = []
        for entry in Path("/proc").iterdir():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split() if entry.name.isdigit() else ["Z"]
                if fields[0] == "Z":
                    continue
                parents[int(entry.name)] = int(fields[1])
                if (entry / "comm").read_text().strip() == "tritonserver":
                    servers.append(int(entry.name))
            except OSError:
                continue  # it ended meanwhile
        for server in servers:
            above = server
            while above in parents and above != scorer:
                above = parents[above]
            if above == scorer:
                return server
        return 0


def until(true: Any, seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError("the service did not come back")
        time.sleep(0.05)


def life(recipe: Any, directory: Path) -> BaseProcess:
    """A trainer on a run directory, as a process of its own that dies with this one."""
    process = multiprocessing.get_context("fork").Process(target=_live, args=(recipe, directory), daemon=True)
    process.start()
    return process


def _live(recipe: Any, directory: Path) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "trainer.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from sightline_trainer.execute import execute
    from sightline_trainer.runs import RunDirectory

    execute(recipe, RunDirectory(directory), lambda event: None)


def _apart(read: Callable[[Path], Any], directory: Path) -> Any:
    """What another process reads of a run: Arrow's threads must not be there when a trainer is forked."""
    context = multiprocessing.get_context("fork")
    mouth, ear = context.Pipe()
    reader = context.Process(target=lambda: mouth.send(read(directory)))
    reader.start()
    mouth.close()  # a reader that dies is an EOFError here
    found = ear.recv()
    reader.join()
    return found


def pairs_of(directory: Path) -> list[dict[str, Any]]:
    """All pairs of a run, in order, without the columns that may differ."""
    rows: list[dict[str, Any]] = _apart(_pairs, directory)
    return rows


def _pairs(directory: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for path in sorted(directory.glob("iterations/*/pairs.parquet")):
        rows += [{key: row[key] for key in row if key not in SCORES} for row in pq.read_table(path).to_pylist()]
    return rows


def note_versions(directory: Path, seen: dict[int, str]) -> bool:
    """Whether every version in place is the policy that it was when it was first seen."""
    from sightline.sampler import manifest_digest, policy_dirname

    same = True
    for path in (directory / "policies").glob("v[0-9]*"):
        digest, version = manifest_digest(path), int(path.name[1:])
        same &= path.name == policy_dirname(version) and seen.setdefault(version, digest) == digest
    return same


def right_versions(directory: Path) -> bool:
    """Whether every candidate of a run's policies is of the version that its iteration was to be sampled by."""
    right: bool = _apart(_right_versions, directory)
    return right


def _right_versions(directory: Path) -> bool:
    import pyarrow.parquet as pq

    for path in directory.glob("iterations/*/candidates/*.parquet"):
        meant = json.loads((path.parents[1] / "rollout.json").read_text())["sampled_by"]
        rows = pq.read_table(path, columns=["policy_version"]).to_pylist()
        if not {row["policy_version"] for row in rows} <= {meant, -1}:  # -1: no policy wrote it
            return False
    return True


def disturbed(
    row: Row, house: House, recipe: Any, directory: Path, wanted: int, horizon: float, moments: random.Random
) -> None:
    """One run with kills of one service until it ends, or `wanted` kills are done and it is left alone."""
    seen: dict[int, str] = {}
    trainer = life(recipe, directory)
    row.runs += 1
    for _ in range(LIVES):
        while trainer.is_alive():
            trainer.join(horizon * moments.random() if row.kills < wanted else None)
            if not trainer.is_alive():
                break
            row.kills += 1
            if row.service == "trainer":
                trainer.kill()
                trainer.join()
            else:
                house.kill(row.service)
                _wait_for_progress(trainer, directory)  # so that the next kill meets a run that came forward again
        row.versions_unique &= note_versions(directory, seen)
        if trainer.exitcode == 0:
            return
        if trainer.exitcode != -signal.SIGKILL:
            state = json.loads((directory / "run.json").read_text())
            row.errors.append(f"{directory.name}: {state.get('reason')}: {state.get('error')}")
        row.resumed += 1
        trainer = life(recipe, directory)
    raise RuntimeError(f"{directory} does not come to its end in {LIVES} lives")


def _wait_for_progress(trainer: BaseProcess, directory: Path) -> None:
    def size() -> int:
        events = directory / "events.jsonl"
        return events.stat().st_size if events.exists() else 0

    before = size()
    until(lambda: size() > before or not trainer.is_alive())


def chaos(services: list[str], kills: int, seed: int, staleness: int, fleet: int, scratch: Path) -> list[Row]:
    """Kill each of the services this many times.

    Returns:
        One row for each service.
    """
    from sightline_playground.export import export
    from sightline_trainer.recipe import Recipe

    _imports()
    journal = Journal(scratch / "chaos.json", {"seed": seed, "staleness": staleness, "fleet": fleet})
    if not journal.took:
        export(scratch / "train", split="align", count=64, seed=1)
        export(scratch / "test", split="test", count=16, seed=2)
    rows = []
    with House(scratch / "services", fleet) as house:
        if not journal.took:
            shutil.rmtree(scratch / "undisturbed", ignore_errors=True)
            began = time.monotonic()
            alone = life(Recipe.model_validate(small(house, scratch, staleness)), scratch / "undisturbed")
            alone.join()
            if alone.exitcode != 0:
                raise RuntimeError(f"the undisturbed run failed: {scratch / 'undisturbed/trainer.log'}")
            journal.begun(time.monotonic() - began)
        expected = pairs_of(scratch / "undisturbed")
        print(f"undisturbed: {len(expected)} pairs in {journal.took:.0f} s", flush=True)
        tree = small(house, scratch, staleness)
        if fleet > 1:  # the undisturbed run had one: pairs do not depend on how many there are
            tree["sampling"]["address"] = house.fleet
        recipe = Recipe.model_validate(tree)
        for service in services:
            row = journal.row(service)
            while row.kills < kills:
                began, directory = time.monotonic(), scratch / f"{service}-{row.runs:02d}"
                shutil.rmtree(directory, ignore_errors=True)  # of an earlier life of ours that did not end it
                moments = random.Random(f"{seed}/{service}/{row.runs}")
                disturbed(row, house, recipe, directory, kills, 0.6 * journal.took, moments)
                found = pairs_of(directory)
                row.pairs += len(found)
                row.pairs_equal &= found == expected
                row.versions_right &= right_versions(directory)
                row.seconds += time.monotonic() - began
                journal.note(row)
                print(f"  {row.kills} kills, {row.runs} runs", flush=True)
            rows.append(row)
            print(f"{line(row)}", flush=True)
    return rows


class Journal:
    """What has ended, so that it is not done again in the same scratch directory.

    Args:
        path: the file.
        settings: which must be those that it was begun with.
    """

    def __init__(self, path: Path, settings: dict[str, int]) -> None:
        self._path = path
        self._tree: dict[str, Any] = {"settings": settings, "took": 0.0, "rows": {}}
        if path.exists():
            self._tree = json.loads(path.read_text())
            if self._tree["settings"] != settings:
                raise SystemExit(f"{path} was begun with {self._tree['settings']}: give another --scratch")

    @property
    def took(self) -> float:
        """Seconds of the undisturbed run; 0 while there is none."""
        return float(self._tree["took"])

    def row(self, service: str) -> Row:
        """What became of a service's runs that ended."""
        return Row(**self._tree["rows"].get(service, {"service": service}))

    def begun(self, took: float) -> None:
        """Note that the undisturbed run is there."""
        self._tree["took"] = took
        self._write()

    def note(self, row: Row) -> None:
        """Note a run that ended."""
        self._tree["rows"][row.service] = asdict(row)
        self._write()

    def _write(self) -> None:
        aside = self._path.with_suffix(".writing")
        aside.write_text(json.dumps(self._tree, indent=2) + "\n")
        aside.replace(self._path)


def small(house: House, scratch: Path, staleness: int) -> dict[str, Any]:
    """Two short iterations on the playground's models."""
    return {
        "name": "chaos",
        "model": str(WEIGHTS / "llava"),
        "iterations": 2,
        "threads": 1,
        "data": {"train": str(scratch / "train"), "test": str(scratch / "test"), "prompts_per_iteration": 24},
        "sampling": {"address": house.address["sampler"], "candidates": 4, "staleness": staleness},
        "reward": {"address": house.address["scorer"]},
        "publication": {"probes": 4},
        "evaluation": {"prompts": 8, "greedy_prompts": 0, "questions": 0, "diverse_prompts": 0},
    }


def _imports() -> None:
    """What every life needs, before the first is forked. Nothing here may start a thread or use gRPC."""
    import sightline_trainer.dpo.launch
    import sightline_trainer.loop
    import sightline_trainer.publish  # noqa: F401
    import transformers

    for name in ("AutoModelForImageTextToText", "AutoProcessor", "LlavaForConditionalGeneration", "LlavaProcessor"):
        getattr(transformers, name)  # loads its module


def line(row: Row) -> str:
    def mark(good: bool) -> str:
        return "yes" if good else "NO"

    return (
        f"| {row.service} | {row.kills} | {row.runs} | {row.resumed} | {len(row.errors)} | {row.pairs} | "
        f"{mark(row.pairs_equal)} | {mark(row.versions_unique)} | {mark(row.versions_right)} | {row.seconds:.0f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--services", nargs="+", choices=SERVICES, help="all; with --fleet, the sampler")
    parser.add_argument("--fleet", type=int, default=1, help="samplers, of which one is killed at a time")
    parser.add_argument("--kills", type=int, default=20, help="kills of each service")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--staleness", type=int, choices=(0, 1), default=0, help="the recipe's sampling.staleness")
    parser.add_argument("--scratch", type=Path, help="where runs and logs stay; default: a directory that goes")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="sightline-chaos-") as temporary:
        scratch = (options.scratch or Path(temporary)).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        services = options.services or (["sampler"] if options.fleet > 1 else list(SERVICES))
        rows = chaos(services, options.kills, options.seed, options.staleness, options.fleet, scratch)
    columns = ("killed", "kills", "runs", "resumed", "errors", "pairs", "pairs equal", "versions unique")
    print("| " + " | ".join((*columns, "versions right", "seconds")) + " |")
    print("|---" * 10 + "|")
    for row in rows:
        print(line(row))
        for error in row.errors:
            print(f"  {error}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
