"""Chaos: kill a service (SIGKILL) at random moments, repeatedly, during small runs of the loop.

    make chaos                                              20 kills of each of trainer, sampler, scorer and triton
    python tools/chaos.py --services trainer --kills 10     fewer
    make chaos ARGS="--fleet 4"                             kill -9 of one of four samplers, 20 times
    make chaos ARGS="--scratch DIR"                         start or continue in DIR: finished runs are kept

The first run is not disturbed. Each disturbed run must end with the same pairs (prompts, texts, token ids, rules; none
lost, none doubled), a policy version must never name two different policies, and every candidate must come from the
version planned for it. A killed process is restarted at once, as by a supervisor: the trainer on its run directory,
sampler and scorer on their ports, a member of a fleet while the others continue, Triton by the scorer that embeds it.
Moments are drawn from a seed, as shares of the undisturbed run's time (with one sampler, also for a fleet); what a kill
interrupts depends on the machine. Each trainer process is forked from this one, so that imports run once.

Exit code 1 if something differs.
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
"""A run that needs more restarts than this does not make progress."""
SCORES = ("images", "chosen_policy_version", "rejected_policy_version", "chosen_reward", "rejected_reward", "margin")
"""Columns that may differ: versions belong to a run, and the last bits of rewards depend on the scorer's batches."""


@dataclass
class Row:
    """Results of the runs in which one service was killed."""

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
    """Sampler and scorer on loopback, killed and restarted on their ports; of `fleet` samplers, a random one."""

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
        """Send SIGKILL and start a replacement."""
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
        """The pid of the scorer's Triton, which is a child of a guard process; 0 if there is none."""
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
    """A trainer on a run directory, in a separate process that dies with this one."""
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
    """Read a run in another process: Arrow's threads must not exist when a trainer is forked."""
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
    """Whether every version is still the same policy as when it was first seen."""
    from sightline.sampler import manifest_digest, policy_dirname

    same = True
    for path in (directory / "policies").glob("v[0-9]*"):
        digest, version = manifest_digest(path), int(path.name[1:])
        same &= path.name == policy_dirname(version) and seen.setdefault(version, digest) == digest
    return same


def right_versions(directory: Path) -> bool:
    """Whether every candidate comes from the version planned for its iteration."""
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
    """One run with kills of one service until the run ends or `wanted` kills are done."""
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
                _wait_for_progress(trainer, directory)  # so that the run has made progress before the next kill
        row.versions_unique &= note_versions(directory, seen)
        if trainer.exitcode == 0:
            return
        if trainer.exitcode != -signal.SIGKILL:
            state = json.loads((directory / "run.json").read_text())
            row.errors.append(f"{directory.name}: {state.get('reason')}: {state.get('error')}")
        row.resumed += 1
        trainer = life(recipe, directory)
    raise RuntimeError(f"{directory} did not finish within {LIVES} lives")


def _wait_for_progress(trainer: BaseProcess, directory: Path) -> None:
    def size() -> int:
        events = directory / "events.jsonl"
        return events.stat().st_size if events.exists() else 0

    before = size()
    until(lambda: size() > before or not trainer.is_alive())


def chaos(services: list[str], kills: int, seed: int, staleness: int, fleet: int, scratch: Path) -> list[Row]:
    """Kill each service this many times.

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
                shutil.rmtree(directory, ignore_errors=True)  # left by an earlier, interrupted call
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
    """The finished runs, which are not repeated in the same scratch directory.

    Args:
        path: the file.
        settings: must equal those of the file.
    """

    def __init__(self, path: Path, settings: dict[str, int]) -> None:
        self._path = path
        self._tree: dict[str, Any] = {"settings": settings, "took": 0.0, "rows": {}}
        if path.exists():
            self._tree = json.loads(path.read_text())
            if self._tree["settings"] != settings:
                raise SystemExit(f"{path} was started with {self._tree['settings']}: give another --scratch")

    @property
    def took(self) -> float:
        """Seconds of the undisturbed run; 0 while there is none."""
        return float(self._tree["took"])

    def row(self, service: str) -> Row:
        """Results of a service's finished runs."""
        return Row(**self._tree["rows"].get(service, {"service": service}))

    def begun(self, took: float) -> None:
        """Record the undisturbed run."""
        self._tree["took"] = took
        self._write()

    def note(self, row: Row) -> None:
        """Record a finished run."""
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
    """Import what every trainer process needs before the first fork. This must not start a thread or use gRPC."""
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
    parser.add_argument("--scratch", type=Path, help="directory of runs and logs (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
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
