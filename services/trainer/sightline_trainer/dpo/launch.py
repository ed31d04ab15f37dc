"""Where an update runs: in this process, or in those of a launcher such as `accelerate launch` or `torchrun`.

    accelerate launch --config_file recipes/accelerate/fsdp.yaml -m sightline_trainer.dpo \\
        --recipe recipe.yaml --pairs pairs.parquet --policy out --work work

is what `dpo.launch: [accelerate, launch, --config_file, recipes/accelerate/fsdp.yaml]` runs for each iteration.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from sightline.errors import InternalError, PreconditionFailed, SightlineError

from sightline_trainer.dpo.kept_pairs import kept_pairs
from sightline_trainer.dpo.probing import UpdateProbe
from sightline_trainer.dpo.sampled import SampledLogprobs
from sightline_trainer.dpo.update import Update, update
from sightline_trainer.recipe import Recipe
from sightline_trainer.row_gate import RowGate

_HALT_SECONDS = 0.25
_TAIL = 2000  # characters of the launcher's log that an error quotes
# Errors of a child that its parent raises again.
_ERRORS: dict[str, type[SightlineError]] = {kind.__name__: kind for kind in (InternalError, PreconditionFailed)}


def run_update(
    recipe: Recipe,
    pairs: Path,
    *,
    previous: Path | None,
    policy: Path,
    work: Path,
    seed: int,
    iteration: int,
    progress: Callable[[int, int], None],
    halt: Callable[[], None] = lambda: None,
    candidates: Path | None = None,
    version: int = 0,
    gate: RowGate | None = None,
) -> Update:
    """`update` on a pairs.parquet, in this process or by the recipe's launcher.

    Args:
        candidates: directory with the sampler's log-probs; None compares nothing.
        version: the policy that the update starts from.
        gate: the gate of the recipe's model, if there is one already.
        halt: called several times a second while a launcher's processes work; an exception from it ends them.

    Raises:
        SightlineError: see `update`; UPDATE_PROCESS_FAILED if the launcher's processes failed otherwise.
    """
    if not recipe.dpo.launch:
        kept, left_out = kept_pairs(pairs, gate or RowGate(recipe.processor))
        done = update(
            recipe, kept, previous=previous, adapter=policy, work=work, seed=seed, iteration=iteration,
            progress=progress, sampled=SampledLogprobs.read(candidates, version) if candidates else None,
        )  # fmt: skip
        return replace(done, metrics={**done.metrics, **left_out})
    work.mkdir(parents=True, exist_ok=True)
    result = work / "update.json"
    result.unlink(missing_ok=True)
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    command = [
        *recipe.dpo.launch, "-m", "sightline_trainer.dpo", "--recipe", str(work / "recipe.yaml"), "--pairs", str(pairs),
        "--policy", str(policy), "--work", str(work), "--seed", str(seed), "--iteration", str(iteration),
        *(["--previous", str(previous)] if previous else []),
        *(["--candidates", str(candidates), "--version", str(version)] if candidates else []),
    ]  # fmt: skip
    code = _run(command, work / "launch.log", progress, halt)
    return _outcome(json.loads(result.read_text()) if result.exists() else None, code, work / "launch.log")


def _run(command: list[str], log: Path, progress: Callable[[int, int], None], halt: Callable[[], None]) -> int:
    """Run to the end and report progress line by line; when this process ends, the launcher's whole group ends."""
    here = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}"}
    try:
        with log.open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603 - the recipe's launcher
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        raise PreconditionFailed(
            f"dpo.launch can't be run: {command[0]}: {error.strerror}", reason="LAUNCHER_UNUSABLE"
        ) from None
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, lines), name="launcher", daemon=True).start()
    try:
        while True:
            halt()
            with suppress(queue.Empty):
                line = lines.get(timeout=_HALT_SECONDS)
                if line is None:
                    return process.wait()
                if line.startswith('{"done"'):
                    message = json.loads(line)
                    progress(message["done"], message["total"])
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    try:
        with process.stdout:
            for line in process.stdout:
                lines.put(line)
    finally:
        lines.put(None)


def _outcome(result: dict[str, Any] | None, code: int, log: Path) -> Update:
    if result is not None and "error" in result:
        raise _ERRORS.get(result["error"], InternalError)(result["message"], reason=result["reason"])
    if result is None or code != 0:
        tail = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:]
        raise InternalError(
            f"the update's processes ended with code {code}; {log} says why:\n{tail}", reason="UPDATE_PROCESS_FAILED"
        )
    return Update(result["metrics"], [UpdateProbe(**probe) for probe in result["probes"]])


def write_outcome(path: Path, outcome: Update | SightlineError) -> None:
    """The result that the child writes for `run_update`."""
    if isinstance(outcome, Update):
        value: dict[str, Any] = asdict(outcome)
    else:
        value = {"error": type(outcome).__name__, "message": str(outcome), "reason": outcome.reason}
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(value))
    aside.replace(path)
