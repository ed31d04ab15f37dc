"""Live checks: call running services as a run calls them, and say what to do if they fail."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sightline.errors import InvalidInput, PreconditionFailed, SightlineError
from sightline.picture_rule import PICTURE_RULE
from sightline.pictures import write_png

from sightline_cli.credentials import given
from sightline_cli.doctor import Look, show
from sightline_cli.live_fixes import fix_of
from sightline_cli.null_policy import RUN, write_null_policy

if TYPE_CHECKING:
    from sightline.sampler import Candidate, Policies, SamplerClient

PROMPT = "Describe the picture."
TEXTS = ("a red square", "a blue circle")
_SECONDS = 120.0
_APART = 0.1  # nats a token between sampling and scoring: the arrival gate's max_gap


@dataclass(frozen=True)
class LiveServices:
    """The services' addresses; None is skipped."""

    scorer: str | None = None
    sampler: str | None = None
    trainer: str | None = None

    def any(self) -> bool:
        """Whether any address is given."""
        return bool(self.scorer or self.sampler or self.trainer)


def look_at(addresses: LiveServices, as_json: bool) -> bool:
    """Call the services and print the checks.

    Returns:
        Whether nothing is bad.

    Raises:
        InvalidInput: no address is given.
    """
    if not addresses.any():
        raise InvalidInput(
            "doctor --live checks services: name at least one with --scorer, --sampler or --trainer",
            reason="NO_ADDRESS",
        )
    services: list[tuple[str, str | None, Callable[[str], Iterator[Look]]]] = [
        ("scorer", addresses.scorer, _scorer),
        ("sampler", addresses.sampler, _sampler),
        ("trainer", addresses.trainer, _trainer),
    ]
    found = [look for name, at, ask in services if at for look in _asked(name, at, ask)]
    return show("sightline doctor --live", found, as_json)


def _asked(name: str, address: str, ask: Callable[[str], Iterator[Look]]) -> Iterator[Look]:
    """The checks of a service; an error ends them."""
    try:
        yield from ask(address)
    except SightlineError as error:
        yield Look(f"{name} at {address}", "bad", str(error), fix_of(error, name))


def _scorer(address: str) -> Iterator[Look]:
    from sightline.scorer import ScorerClient

    with ScorerClient(address, **given().of_client()) as client:
        known = client.list_models(timeout=_SECONDS).models
        named = ", ".join(f"{one.name} ({one.architecture}, weights {one.weights_digest[:12]})" for one in known)
        yield Look("scorer", "ok", f"{address}: {named}")
        for model in known:
            red, blue = client.score(red_square(), list(TEXTS), model=model.name, timeout=_SECONDS).clip_score
            said = f"{TEXTS[0]!r} {red:.1f}, {TEXTS[1]!r} {blue:.1f}"
            fix = "" if red > blue else "any CLIP tells them apart: check that these are the right weights"
            yield Look(f"scorer: a red square by {model.name}", "warn" if fix else "ok", said, fix)


def _sampler(address: str) -> Iterator[Look]:
    from sightline.sampler import SamplerClient, exact

    with SamplerClient(address, **given().of_client()) as client:
        known = client.policies(timeout=_SECONDS)
        able, active = known.capabilities, known.active
        version = active.version
        run = f" of run {active.run_id}" if active.run_id else ""
        seen = (
            f"{address}: {able.engine} with {able.model}; policy {version}{run} answers, {len(known.policies)} loaded"
        )
        yield Look("sampler", "ok", seen)
        if able.picture_rule != PICTURE_RULE:
            fix = "services, runs and this command need releases with the same rule (docs/deploy.md, Upgrades)"
            yield Look("sampler: pictures", "bad", f"read by rule {able.picture_rule or '?'}, not {PICTURE_RULE}", fix)
        policy = exact(version, active.run_id)
        drawn = client.sample(red_square(), PROMPT, 2, seed=1, max_tokens=16, policy=policy, timeout=_SECONDS)
        yield Look("sampler: a red square", "ok", "; ".join(repr(one.text) for one in drawn.candidates))
        seeds = [one.seed for one in drawn.candidates]
        again = client.sample(red_square(), PROMPT, 2, seeds=seeds, max_tokens=16, policy=policy, timeout=_SECONDS)
        yield _seeds(drawn.candidates, again.candidates, able.seeds)
        if able.scores:
            first = drawn.candidates[0]
            scored = client.score_tokens(red_square(), PROMPT, first.token_ids, policy=policy, timeout=_SECONDS)
            gap = float(np.abs(scored.logprobs - first.logprobs).mean()) if len(first.token_ids) else 0.0
            fix = "" if gap <= _APART else "no policy can pass the arrival gate; is a cache from other weights?"
            seen = f"log-probs of sampling and scoring differ by {gap:.2g} nats"
            yield Look("sampler: log-probs", "bad" if fix else "ok", seen, fix)
        else:
            fix = "TGI: start it with --enable-prefill-logprobs"
            yield Look("sampler: log-probs", "bad", "it cannot score tokens, so no policy can prove itself", fix)
        with SamplerClient(address, run_id=RUN, **given().of_client()) as of_doctor:
            yield from _null_policy(of_doctor, known)


def _seeds(first: tuple[Candidate, ...], again: tuple[Candidate, ...], promised: bool) -> Look:
    """Whether the same seeds gave the same tokens."""
    same = [a.token_ids.tolist() == b.token_ids.tolist() for a, b in zip(first, again, strict=True)]
    tokens = sum(len(one.token_ids) for one in first)
    seeds = ", ".join(str(one.seed) for one in first)
    if all(same):
        return Look("sampler: seeds", "ok", f"{seeds} gave the same {tokens} tokens again")
    seen = f"{seeds}: {len(same) - sum(same)} of {len(same)} gave other tokens"
    fix = "runs are not reproducible to the token: batching changes last bits (vLLM: VLLM_BATCH_INVARIANT=1)"
    return Look("sampler: seeds", "bad" if promised else "warn", seen, fix)


def _null_policy(client: SamplerClient, known: Policies) -> Iterator[Look]:
    """Stage a policy, check that it does not answer without proof, and retire it."""
    from sightline.sampler import exact

    able = known.capabilities
    if able.lora == "none" or able.adapter_place is None:
        fix = "TGI: engine.tgi.merge_into, or publish policies merged" if able.lora == "none" else ""
        yield Look("sampler: a null policy", "warn", "not tried: this engine takes no adapters", fix)
        return
    mine = client.policies(timeout=_SECONDS)
    for left in mine.policies:
        if left.run_id == RUN:  # left by a doctor that was killed
            client.retire(left.version)
    version = mine.highest_version + 1
    with tempfile.TemporaryDirectory() as name:
        write_null_policy(Path(name), able.adapter_place, version, known.policies[0].base_digest)
        staged = client.deliver(Path(name), version)
    seen = f"{staged.changed_modules} module of {able.adapter_place.module} in {staged.tensors} tensors"
    try:
        way = "pushed" if staged.uri.startswith("pushed://") else "named by its path"
        yield Look("sampler: a null policy", "ok", f"{way} and staged as {version} of run {RUN}: {seen}")
        try:
            client.sample(red_square(), PROMPT, 1, max_tokens=2, policy=exact(version), timeout=_SECONDS)
            fix = "policies.gate.required is false: the sampler would answer with weights that never arrived"
            yield Look("sampler: the gate", "warn", "a policy without proof may answer", fix)
        except PreconditionFailed as refusal:
            yield Look("sampler: the gate", "ok", f"it does not answer without proof ({refusal.reason})")
    finally:
        client.retire(version)
    gone = all(one.version != version for one in client.policies(timeout=_SECONDS).policies)
    fix = "" if gone else "its engine did not unload it: see the sampler's log"
    yield Look("sampler: retired", "ok" if gone else "bad", "it was removed" if gone else "it is still listed", fix)


def _trainer(address: str) -> Iterator[Look]:
    from sightline.runs import RunClient

    with RunClient(address, **given().of_client()) as client:
        runs = list(islice(client.list(timeout=_SECONDS), 1000))
    counts = {state: sum(run.state == state for run in runs) for state in sorted({run.state for run in runs})}
    told = ", ".join(f"{count} {state}" for state, count in counts.items()) or "none yet"
    yield Look("trainer", "ok", f"{address}: runs: {told}")
    if runs:
        newest = max(runs, key=lambda run: run.create_time)
        seen = f"{newest.id}: {newest.state}, iteration {newest.iteration} of {newest.iterations}"
        failed = newest.state == "failed"
        fix = f"sightline runs resume {newest.id}, after the cause is fixed (docs/runbooks.md)" if failed else ""
        yield Look("trainer: newest run", "warn" if failed else "ok", f"{seen} {newest.error}".strip(), fix)


def red_square(side: int = 64) -> bytes:
    """A simple picture, as PNG."""
    return write_png(np.full((side, side, 3), (255, 0, 0), np.uint8))
