"""Measure a 7 B run in which sampler and update take turns on one card.

The sampler samples, frees its memory while the update trains, and reloads it to receive the new policy. The sampler (a
process, as `sightline run` starts it) and the update load one checkpoint of LLaVA-1.5-7B's shape from disk.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llava
import report
import torch
import update as gpu_update
from sightline.sampler import (
    PolicyManifest,
    Probe,
    SamplerClient,
    model_digest,
    policy_dirname,
    write_manifest,
)
from sightline_cli.processes import Processes
from sightline_trainer.dpo.update import Update, update


def work(to: report.Report) -> None:
    """Run one iteration, without scores."""
    with tempfile.TemporaryDirectory(prefix="sightline-gpu-", dir=gpu_update.roomy()) as directory:
        scratch = Path(directory)
        count = 2 if to.dry else 8
        job = gpu_update.Job(to, scratch, pairs=count, prompts=count, dtype=to.dtype)
        model = job.checkpoint()
        settings = [f"engine.model={model}", f"engine.device={to.device}", "policies.gate.required=true"]
        settings += ["engine.dtype=bfloat16"] if to.dtype == torch.bfloat16 else []
        with Processes(scratch / "services") as processes:
            processes.start("sampler", settings)
            began = time.monotonic()
            try:
                address = processes.wait("sampler", seconds=300).grpc
                to.row("turns_sampler_starts", time.monotonic() - began, "s", "lower", card_gib=_in_use())
                with SamplerClient(address, timeout=300) as client:
                    _take_turns(to, job, model, client)
            except BaseException:
                print("sampler", processes.tail("sampler", 12), flush=True)
                raise


def _take_turns(to: report.Report, job: gpu_update.Job, model: Path, client: SamplerClient) -> None:
    tokens, k = (4, 2) if to.dry else (64, 8)
    began = time.monotonic()
    with ThreadPoolExecutor(job.count) as pool:
        asked = [
            pool.submit(client.sample, llava.picture(number), llava.prompt(), k, seed=number, max_tokens=tokens)
            for number in range(job.count)
        ]
        ids = asked[0].result().candidates[0].token_ids
        made = sum(len(one.token_ids) for each in asked for one in each.result().candidates)
    to.row("turns_sampled", made / (time.monotonic() - began), "tokens/s", prompts=job.count, card_gib=_in_use())
    before = client.score_tokens(llava.picture(0), llava.prompt(), ids).logprobs

    began = time.monotonic()
    client.pause(release=True)
    to.row("turns_rest", time.monotonic() - began, "s", "lower", card_gib=_in_use())

    began = time.monotonic()
    policy = job.scratch / policy_dirname(1)
    policy.mkdir()
    recipe = job.recipe(shared=True, checkpointing=True)
    # Random weights round more than trained ones, so the update is large enough for the gate to see it.
    recipe = recipe.model_copy(
        update={"model": str(model), "dpo": recipe.dpo.model_copy(update={"learning_rate": 1e-4})}
    )
    done = update(
        recipe, job.pairs, previous=None, adapter=policy, work=job.scratch / "work", seed=0, progress=lambda *_: None
    )
    peak = torch.cuda.max_memory_reserved() / 2**30 if to.device == "cuda" else 0.0
    to.row("turns_update", time.monotonic() - began, "s", "lower", peak_gib=round(peak, 2), card_gib_after=_in_use())

    began = time.monotonic()
    client.resume()
    to.row("turns_wake", time.monotonic() - began, "s", "lower", card_gib=_in_use())
    after = client.score_tokens(llava.picture(0), llava.prompt(), ids).logprobs
    to.row("turns_logprobs_after_rest", float(abs(after - before).max()), "nats", "lower", 1e-3, "before it")
    _publish(to, job, model, policy, done, client)


def _publish(
    to: report.Report, job: gpu_update.Job, model: Path, policy: Path, done: Update, client: SamplerClient
) -> None:
    """Deliver the policy as a run does: sealed, staged, and proved by the trainer's own log-probs."""
    pictures = {name: llava.picture(int(name[1:])) for name in job.pairs["prompt_id"]}
    manifest = PolicyManifest(
        version=1, kind="lora", parent_version=0, base_digest=model_digest(model), run_id="gpu", iteration=1
    )
    write_manifest(policy, manifest)
    probes = [
        Probe(pictures[one.prompt_id], one.prompt, one.token_ids, one.logprobs, one.previous_logprobs)
        for one in done.probes
    ]
    began = time.monotonic()
    client.stage(policy, 1)
    arrival = client.activate(1, probes=probes).arrival
    assert arrival is not None
    limit = 1e-3 if to.dtype == torch.float32 else 0.05
    to.row(
        "turns_arrival_gap", arrival.gap, "nats a token", "lower", limit, "the trainer's log-probs",
        passed=arrival.passed, seconds=round(time.monotonic() - began, 2),
    )  # fmt: skip


def _in_use() -> float:
    """GiB of the card used by all processes; 0 on a CPU."""
    if not torch.cuda.is_available():
        return 0.0
    report.free()
    free, total = torch.cuda.mem_get_info()
    return round((total - free) / 2**30, 2)


if __name__ == "__main__":
    report.run("turns", work)
