"""Compare the scorer with a limit: the same models in one process, as fast as torch can run them on the same cores.

    python benchmarks/scorer.py                       # about six minutes on two busy cores
    python benchmarks/scorer.py --quick               # the figures that have a target, with fewer requests
    python benchmarks/scorer.py --only memory --requests 100000       # or ratios, concurrency, overload, start

A request is one JPEG of 640 x 480 and 8 captions of 16 tokens. Ratios compare CPU seconds of the scorer and its Triton
(`detail` has the client's) with the limit's, by turns, with one torch thread everywhere, on a CPU. For a GPU, see
`tools/gpu.sh`.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness import Row, Sample, ratio, write
from scorer_infinity import Infinity, as_transformers, installed
from scorer_limit import Limit
from scorer_service import Service, Turn, bytes_per_pair, serving
from scorer_start import start_and_memory
from scorer_work import TEXTS, Requests, model_directory

MAIN = "ViT-B-32"
PARTS = ("concurrency", "ratios", "overload", "memory", "start")


@dataclass(frozen=True)
class Plan:
    """The amount of work."""

    models: tuple[str, ...]
    concurrency: tuple[int, ...]
    rounds: int
    requests: int  # of one turn
    singles: int
    overload_seconds: float
    memory_requests: int


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer models, turns and requests")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this part")
    parser.add_argument("--model", action="append", help="only this model: tiny, or an open_clip name")
    parser.add_argument("--requests", type=int, help="number of requests of the memory row")
    given = parser.parse_args()
    if given.quick:
        plan = Plan(("tiny", MAIN), (1, 32), 2, 16, 12, 3, 1000)
    else:
        models = (
            "tiny",
            MAIN,
            "ViT-B-16",
        )
        plan = Plan(models, (1, 8, 32, 128), 3, 48, 40, 5, 3000)
    parts: list[str] = given.only or list(PARTS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        work = Path(name)
        models = plan.models if "concurrency" in parts else ("tiny", MAIN)
        if "ratios" in parts or "concurrency" in parts:
            for model in given.model or models:
                rows += towers(model, plan, parts, work)
        if "overload" in parts:
            rows += overload(plan, work)
        if "start" in parts:
            for model in given.model or ("tiny", MAIN):
                rows += start_and_memory(model, 32 if given.quick else 128, work)
        if "memory" in parts:
            rows += memory(given.requests or plan.memory_requests, work)
    whole = not given.quick and not given.model and len(parts) == len(PARTS)
    few = "-".join([*parts, *map(_key, given.model or ()), *(["quick"] if given.quick else [])])
    write("scorer" if whole else f"scorer-{few}", rows)


def towers(model: str, plan: Plan, parts: list[str], work: Path) -> list[Row]:
    """Compare one model with the limit: pairs per CPU second at each concurrency, and the ratios that have a target."""
    directory = model_directory(model, work)
    requests = Requests(model, seed=1)
    limit = Limit(directory, Requests(model, seed=2))
    main = model == MAIN
    prefix = "" if main else f"{_key(model)}_"
    rounds = plan.rounds if main else 1
    rows: list[Row] = []
    with serving(work / f"serving-{model}", directory) as service:
        service.turn(requests.cold(8), 8)
        if "concurrency" in parts:
            rows += _concurrency(model, service, limit, requests, plan)
        if "ratios" in parts and main:
            rows += _against_the_limit(prefix, service, limit, requests, plan.requests, rounds)
            if installed():
                peer = Infinity(as_transformers(directory, work / f"transformers-{model}"))
                rows += _against_infinity(prefix, service, peer, requests, plan.requests, rounds)
            rows += _alone(prefix, service, limit, requests, plan.singles)
        elif "ratios" in parts and model == "tiny":
            rows += _overhead(service, limit, requests, plan)
        peak = service.peak_mib()
    rows.append(Row(f"{_key(model)}_peak_memory", peak, "MiB", "lower", against="service and Triton together"))
    return rows


def _concurrency(model: str, service: Service, limit: Limit, requests: Requests, plan: Plan) -> list[Row]:
    """Pairs per CPU second at each number of requests in flight, cold and with known images."""
    number = plan.requests if model != "ViT-B-16" else plan.requests // 2
    known = requests.cold(number)
    raw = _raw(lambda: limit.score(known))
    key = _key(model)
    rows = [
        Row(
            f"{key}_limit",
            number * TEXTS / raw.cpu,
            "pairs/CPU-s",
            "higher",
            against="in process, one thread",
            detail={"image_batch": limit.image_batch, "text_batch": limit.text_batch, "requests": number},
        )
    ]
    for kind, concurrency in itertools.product(("cold", "warm"), plan.concurrency):
        if model == "ViT-B-16" and concurrency not in (1, 32):
            continue
        count = max(8, concurrency, number // 6) if concurrency < 32 else max(number, concurrency)
        if kind == "warm":
            service.turn(requests.warm(64), 32) if concurrency == plan.concurrency[0] else None
            count = min(count, number)
        batch = requests.cold(count) if kind == "cold" else requests.warm(count)
        turn = service.turn(batch, concurrency)
        rate = turn.pairs / max(turn.server, 0.01)
        detail = {
            **turn.figures(),
            "over_limit": round(rate / (number * TEXTS / raw.cpu), 3),
            "bytes_per_pair": round(bytes_per_pair(batch[0])),
        }
        rows.append(Row(f"{key}_{kind}_c{concurrency}", rate, "pairs/CPU-s", "higher", detail=detail))
    return rows


def _against_the_limit(
    prefix: str, service: Service, limit: Limit, requests: Requests, number: int, rounds: int
) -> list[Row]:
    """Measure the three ratios; both arms take turns on the same requests."""
    cold_raw, cold, warm_raw, warm, repeat = [], [], [], [], []
    service.turn(requests.warm(min(number, 64)), 32)  # from here on the service knows these images
    for _ in range(rounds):
        fresh = requests.cold(number)
        cold_raw.append(_raw(lambda: limit.score(fresh)))  # noqa: B023
        cold.append(service.turn(fresh, 32))
        repeat.append(sum((service.turn(fresh, 32) for _ in range(4)), Turn()))
        seen = requests.warm(number)
        texts = [text for request in seen for text in request.texts]
        warm_raw.append(_raw(lambda: limit.texts(texts)))  # noqa: B023
        warm.append(service.turn(seen, 32))
    rows = []
    for name, raw, turns, target, times in (
        ("cold_over_limit", cold_raw, cold, 0.95, 1),
        ("warm_over_text_limit", warm_raw, warm, 0.9, 1),
        ("repeat_over_limit", cold_raw, repeat, 40, 4),
    ):
        scaled = [Sample(one.wall * times, one.cpu * times) for one in raw]
        value, detail = ratio(scaled, [turn.sample() for turn in turns])
        with_client, _ = ratio(scaled, [turn.sample(with_client=True) for turn in turns])
        figures = {**detail, "with_client_cpu": round(with_client, 3), **sum(turns, Turn()).figures()}
        against = "the text tower alone" if name.startswith("warm") else "in process, one thread"
        rows.append(Row(prefix + name, value, "ratio", "higher", target, against, figures))
    return rows


def _overhead(service: Service, limit: Limit, requests: Requests, plan: Plan) -> list[Row]:
    """Measure the cost of a request beyond its towers, with a model whose towers cost almost nothing.

    With 32 callers and with one. The limit decodes, resizes, tokenises and runs the towers in one process. The service
    also pays for gRPC, the event loop, the steps between, and Triton.
    """
    rows = []
    for callers, number in ((32, 4 * plan.requests), (1, plan.requests)):
        raw, ours = [], []
        for turn in range(-1, plan.rounds):
            fresh = requests.cold(number)
            samples = _raw(lambda: limit.score(fresh)), service.turn(fresh, callers)  # noqa: B023
            if turn >= 0:
                raw.append(samples[0])
                ours.append(samples[1])
        value, detail = ratio(raw, [turn.sample() for turn in ours])
        target = {32: 0.75, 1: 0.55}[callers]
        figures = {**detail, **sum(ours, Turn()).figures()}
        against = "in process, one thread"
        rows.append(Row(f"tiny_cold_over_limit_{callers}", value, "ratio", "higher", target, against, figures))
        if callers == 32:
            beyond = [1000 * (turn.server - one.cpu) / number for turn, one in zip(ours, raw, strict=True)]
            low, high = min(beyond), max(beyond)
            more = {"low": round(low, 2), "high": round(high, 2), "raw_ms": round(1000 * raw[-1].cpu / number, 2)}
            value = float(np.median(beyond))
            rows.append(Row("scorer_overhead_ms_32", value, "CPU-ms/request", "lower", 1.8, against, more))
    return rows


def _against_infinity(
    prefix: str, service: Service, peer: Infinity, requests: Requests, number: int, rounds: int
) -> list[Row]:
    """Compare ours with infinity: the same weights, by turns on the same cold requests, 32 at a time."""
    theirs, ours = [], []
    for turn in range(-1, rounds):
        fresh = requests.cold(number)
        samples = peer.turn(fresh, 32), service.turn(fresh, 32).sample()
        if turn >= 0:
            theirs.append(samples[0])
            ours.append(samples[1])
    value, detail = ratio(theirs, ours)
    return [
        Row(f"{prefix}cold_over_infinity", value, "ratio", "higher", 1.05, "infinity-emb's engine in process", detail)
    ]


def _alone(prefix: str, service: Service, limit: Limit, requests: Requests, number: int) -> list[Row]:
    """Compare the latency of one request at a time with one in process, by turns."""
    raw, ours = [], Turn()
    for request in requests.cold(number):
        began = time.perf_counter()
        limit.score([request])
        raw.append(time.perf_counter() - began)
        ours += service.turn([request], 1)
    times = {f"{name}_p{p}_ms": round(1000 * float(np.percentile(values, p)), 1)
             for name, values in (("raw", raw), ("ours", ours.latencies)) for p in (50, 99)}  # fmt: skip
    value = times["ours_p99_ms"] / times["raw_p99_ms"]
    detail = {**times, "requests": number, "p50_ratio": round(times["ours_p50_ms"] / times["raw_p50_ms"], 3)}
    return [Row(f"{prefix}single_p99_over_raw", value, "ratio", "lower", 1.3, "one request in process", detail)]


def overload(plan: Plan, work: Path) -> list[Row]:
    """Pairs scored per CPU second with ten times the callers that fill the service, relative to the peak.

    The model is the tiny one with small photos, where a refusal costs the most compared with a score.
    """
    requests = Requests("tiny", seed=3, small=True).endless(TEXTS)
    with serving(work / "serving-overload", model_directory("tiny", work)) as service:
        service.overload(requests, 64, 1)
        peak, over = [], []
        for _ in range(2):
            peak.append(service.overload(requests, 64, plan.overload_seconds))
            over.append(service.overload(requests, 640, plan.overload_seconds))
    rates = [(_rate(many), _rate(few)) for many, few in zip(over, peak, strict=True)]
    value = float(np.median([many / few for many, few in rates]))
    total, calm = sum(over, Turn()), sum(peak, Turn())
    refused = sum(count for name, count in total.outcomes.items() if name in ("QUEUE_FULL", "BACKEND_QUEUE_FULL"))
    detail = {
        "workers": [64, 640],
        "peak": calm.figures(),
        "overload": total.figures(),
        "refused_of_all": round(refused / max(1, sum(total.outcomes.values())), 3),
        "refusals": refused,
        "wall_ratio": round((total.pairs / total.wall) / (calm.pairs / calm.wall), 3),
    }
    return [Row("goodput_at_10x_over_peak", value, "ratio", "higher", 0.9, "64 callers, per CPU second", detail)]


def memory(number: int, work: Path) -> list[Row]:
    """Growth of resident memory over this many requests with small, full caches; the first fifth fills them."""
    requests = Requests("tiny", seed=4, small=True).endless(1)
    small = ["cache.image_bytes=1048576", "cache.text_bytes=1048576", "image_store.max_bytes=4194304"]
    with serving(work / "serving-memory", model_directory("tiny", work), *small) as service:
        service.turn(list(itertools.islice(requests, max(500, number // 5))), 16)
        before = service.memory_mib()
        turn, left = Turn(), number
        while left > 0:
            turn += service.turn(list(itertools.islice(requests, min(left, 2000))), 16)
            turn.latencies.clear()
            left -= 2000
        after = service.memory_mib()
    detail = {"requests": number, "before": before, "after": after, "outcomes": dict(turn.outcomes)}
    growth = sum(after.values()) - sum(before.values())
    return [Row("memory_growth", growth, "MiB", "lower", 16, f"over {number} requests, caches full", detail)]


def _raw(work: Callable[[], object]) -> Sample:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


def _rate(turn: Turn) -> float:
    return turn.pairs / max(turn.server, 0.01)


def _key(model: str) -> str:
    return model.lower().replace("-", "_")


if __name__ == "__main__":
    main()
