"""Memory: estimates from sizes how much each process of a run needs, compared with the device's memory.

For the update, with N bytes per number in `dpo.dtype`, T tokens in a pass, and the language model's `width` W, `inner`
I and `kept` K (its keys' width), a layer keeps for the backward pass

    T x N x (9 W + 3 K + 4 I)      stream, norms, queries before and after their rotation, attention's output; keys and
                                   values; gate, its activation, up, and their product
    T x N x W                      with gradient checkpointing, and the above for the current layer

and the gradients of the current layer take as much as two layers keep. A pass has B pairs: T = B (P + 2 R) if responses
share the prefix of P tokens (R is sampling.max_tokens), otherwise 2 B (P + R). Extra rows of a pair (`dpo.extra_rows`)
add theirs, with a separate prefix for each view of the picture. T is at most dpo.batch_tokens. docs/log.md compares it
with measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from sightline_chassis.memory import free_bytes

from sightline_trainer.preflight.finding import Finding
from sightline_trainer.preflight.sizes import Sizes
from sightline_trainer.recipe import Recipe

RUNTIME = 900 << 20
"""Main memory of a process with torch, transformers and TRL before it loads a model; a GPU's context is smaller."""
CONTEXT = 500 << 20
"""GPU memory of a process before it loads a model."""
TYPICAL_PROMPT = 700
"""Assumed tokens of a prompt with its image, if they could not be counted; LLaVA-1.5's have about 620."""
_GUESSED = ("activations", "keys and values")


@dataclass(frozen=True)
class ProcessMemory:
    """Memory of one process, in bytes by purpose; empty if unknown."""

    parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    @property
    def resting(self) -> int:
        """Memory of a resting sampler: its adapters, and the process itself."""
        return self.parts.get("runtime", 0) + self.parts.get("policies", 0)

    @property
    def certain(self) -> int:
        """The memory that it needs in any case, independent of how full its batches are."""
        return sum(size for name, size in self.parts.items() if name not in _GUESSED)

    def __str__(self) -> str:
        if not self.parts:
            return "not known"
        return f"{gib(self.total)} ({', '.join(f'{gib(size)} {name}' for name, size in self.parts.items() if size)})"


@dataclass(frozen=True)
class Place:
    """Whose memory a run's processes use: the first GPU's, or the machine's."""

    name: str
    free: int
    gpu: bool

    @classmethod
    def here(cls) -> Place:
        """Of this process."""
        import torch

        if torch.cuda.is_available():
            return cls(torch.cuda.get_device_name(0), int(torch.cuda.mem_get_info(0)[0]), True)
        return cls("this machine", free_bytes(), False)


@dataclass(frozen=True)
class Estimate:
    """Memory of the processes of a run, by name, and the place of local ones."""

    place: Place
    processes: Mapping[str, ProcessMemory]
    here: tuple[str, ...]
    turns: bool = False
    """Whether sampler and update take turns, so that the larger of the two counts."""

    def most(self, size: Callable[[ProcessMemory], int]) -> int:
        """Bytes that the local processes need at the same time."""
        sizes = {name: size(self.processes[name]) for name in self.here}
        if self.turns and "sampler" in sizes:
            resting = self.processes["sampler"].resting
            taken = max(sizes["trainer"] + resting, sizes["sampler"])
            return sum(sizes.values()) - sizes["trainer"] - sizes["sampler"] + taken
        return sum(sizes.values())

    def tree(self) -> dict[str, object]:
        """For JSON; bytes."""
        return {
            "device": {"name": self.place.name, "free": self.place.free},
            "processes": {
                name: {"here": name in self.here, "total": one.total or None, **one.parts}
                for name, one in self.processes.items()
            },
        }


def estimate(
    recipe: Recipe, sizes: Sizes, *, prompt: int | None, here: tuple[str, ...] = (), scorer: int | None = None
) -> Estimate:
    """The memory that the processes of a run will need.

    Args:
        prompt: tokens of a prompt with its image; None if unknown.
        here: the services that will run on this machine's device beside the update.
        scorer: bytes of the scorer's weights, if known.
    """
    place, length = Place.here(), prompt or TYPICAL_PROMPT
    runtime = CONTEXT if place.gpu else RUNTIME
    return Estimate(
        place,
        {
            "trainer": _trainer(recipe, sizes, length, place, runtime),
            "sampler": _sampler(recipe, sizes, length, place, runtime),
            "scorer": ProcessMemory({"runtime": runtime, "weights": scorer} if scorer else {}),
        },
        ("trainer", *(name for name in here if not (place.gpu and _on_cpu(recipe, name)))),
        turns=bool(recipe.sampling.rests),
    )


def _on_cpu(recipe: Recipe, service: str) -> bool:
    """Whether a service that is started for the run does not use the GPU."""
    keys = getattr(recipe.services, service).model_dump()
    section = keys.get("engine" if service == "sampler" else "triton") or {}
    return section.get("device") == "cpu"


def too_large(made: Estimate, *, strict: bool) -> Iterator[Finding]:
    """UPDATE_NEEDS_MEMORY: the local processes do not fit. If that is only likely, it is an error for a check, and a
    warning at a run's start."""
    ours = {name: made.processes[name] for name in made.here}
    certain, total = made.most(lambda one: one.certain), made.most(lambda one: one.total)
    if total <= made.place.free:
        return
    sure = certain > made.place.free
    yield Finding(
        "UPDATE_NEEDS_MEMORY",
        f"{made.place.name} has {gib(made.place.free)} free, and the run {'needs' if sure else 'will need about'} "
        f"{gib(certain if sure else total)} of it: {'; '.join(f'{name} {one}' for name, one in ours.items())}",
        _ways(sure, made),
        "error" if sure or strict else "warning",
    )


def _ways(sure: bool, made: Estimate) -> str:
    smaller = "set dpo.batch_tokens or a smaller dpo.batch_size, dpo.gradient_checkpointing=true"
    turns = "let sampler and update take turns (sampling.rests=true), " if "sampler" in made.here else ""
    turns = "" if made.turns else turns
    return turns + (
        "set dpo.dtype=bfloat16 and dpo.train=lora, shard the update by dpo.launch, let services run on another "
        "machine, or use a smaller model"
        if sure
        else f"{smaller}, dpo.dtype=bfloat16 or a smaller sampling.max_in_flight"
    )


def _trainer(recipe: Recipe, sizes: Sizes, prompt: int, place: Place, runtime: int) -> ProcessMemory:
    # Not at the top: they import torch, which a trainer service without a run does not need.
    from sightline_trainer.dpo.device import Memory
    from sightline_trainer.dpo.extra_rows import extra_rows

    settings = recipe.dpo
    shared = settings.shared_prefix and settings.attn_implementation == "sdpa" and sizes.shared
    number = 2 if settings.dtype == "bfloat16" else 4
    parts = {"runtime": runtime}
    if settings.train == "full":
        compute = 2 * sizes.trained if number == 2 else 0
        whole = Memory(
            4 * sizes.parameters, 4 * sizes.trained, 8 * sizes.trained, compute, 4 * sizes.parameters, 4 * sizes.trained
        )
        parts |= {"weights": whole.masters, "gradients, AdamW, reference": whole.peak - whole.masters}
    else:
        # An adapter is always float32, with its gradient and AdamW's two moments.
        parts |= {"weights": sizes.weights(number, recipe.quantization), "adapter and AdamW": 16 * sizes.trained}
    if not place.gpu:
        parts["copy to compare with"] = 4 * sizes.trained
    pairs, answer = settings.batch_size, recipe.sampling.max_tokens
    beside = extra_rows(settings)
    rows, prefixes = 2 + len(beside), 1 + len({row.shown for row in beside if row.shown is not None})
    one = prefixes * prompt + rows * answer if shared else rows * (prompt + answer)
    # A pair is always in one part of a batch.
    tokens = pairs * one if settings.batch_tokens is None else min(pairs * one, max(one, settings.batch_tokens))
    layer = tokens * number * (9 * sizes.width + 3 * sizes.kept + 4 * sizes.inner)
    stream = tokens * number * sizes.width
    kept = layer + sizes.layers * stream if settings.gradient_checkpointing else sizes.layers * layer
    parts["activations"] = kept + 2 * layer
    return ProcessMemory(parts)


def _sampler(recipe: Recipe, sizes: Sizes, prompt: int, place: Place, runtime: int) -> ProcessMemory:
    sampling = recipe.sampling
    keys = recipe.services.sampler.model_dump().get("engine") or {}
    number = _NUMBERS.get(str(keys.get("dtype")), sizes.stored if place.gpu else 4)
    weights = sizes.weights(number, recipe.quantization)
    rows = min(int(keys.get("max_rows") or _ROWS), sampling.max_in_flight * sampling.candidates)
    wanted = rows * (prompt + sampling.max_tokens) * sizes.slot(number)
    # Its engine takes this share of the memory that is free after its weights are loaded.
    share = float(keys.get("cache_share") or _SHARE)
    most = int(keys.get("cache_mib") or 0) << 20 or int(share * max(0, place.free - weights - runtime))
    policies = recipe.publication.keep * (weights if recipe.dpo.train == "full" else 4 * sizes.trained)
    return ProcessMemory(
        {"runtime": runtime, "weights": weights, "policies": policies, "keys and values": min(wanted, most)}
    )


# Defaults of the sampler's engine: max_rows and cache_share.
_ROWS, _SHARE = 512, 0.5
_NUMBERS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def gib(size: float) -> str:
    """12.3 GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 0.05 * 2**30 else f"{size / 2**20:.0f} MiB"
