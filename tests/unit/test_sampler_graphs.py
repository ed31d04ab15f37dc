"""Decoding steps in pieces that end where attention begins, as CUDA graphs record them; the graphs need a GPU."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from sightline.sampler.params import SamplingParams
from sightline.sampler.turns import user_turn
from sightline_sampler.engines import seeds
from sightline_sampler.engines.base import Conversation, SampleWork
from sightline_sampler.engines.local import graphs, selfcheck
from sightline_sampler.engines.local.attention import rowwise_attention
from sightline_sampler.engines.local.kv import RowCache
from sightline_sampler.engines.local.lane import Lane
from sightline_sampler.engines.local.model import BaseModel, load_base
from sightline_sampler.engines.local.prefill import ImageFeatures, Prefiller
from sightline_sampler.engines.local.prompts import PromptBuilder
from sightline_sampler.engines.local.rest import Rest
from sightline_sampler.engines.local.rows import Request
from sightline_sampler.engines.local.token_pass import pass_tokens
from sightline_sampler.engines.local.weights import Weights

QUICK = ("llava", "qwen2_5_vl", "gemma3")


class _InPieces:
    """Takes the place of `StepGraphs` on a CPU: attention runs at each cut, between two pieces of the forward pass."""

    fused = False

    def __init__(self) -> None:
        self.steps, self.cuts = 0, list[int]()
        self._cache: RowCache | None = None

    def run(
        self, model: Any, version: int, cache: RowCache, ids: torch.Tensor, positions: torch.Tensor, axes: int
    ) -> torch.Tensor | None:
        if not cache.plain:
            return None
        self.steps += 1
        self._cache = cache
        rows = graphs.rows_for(len(ids))
        padded = torch.zeros((2, rows, 1), dtype=torch.long)
        padded[0, : len(ids), 0], padded[1, : len(ids), 0] = ids, positions
        keys = graphs._CutCache(self, cache)  # type: ignore[arg-type]
        return pass_tokens(model, padded[0], padded[1], axes, keys, torch.float32)[: len(ids)]

    def cut(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        assert self._cache is not None
        self.cuts.append(layer)
        slots = self._cache.slots(layer, key, value)
        return rowwise_attention(torch.nn.Identity(), query, slots, slots, None, scaling)[0]


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in families.FAMILIES],
)
def test_a_step_in_pieces_has_the_log_probs_of_a_plain_forward(name: str, tmp_path: Path) -> None:
    template = families.FAMILIES[name].template
    given = None
    if template:
        given = tmp_path / "template.jinja"
        given.write_text(template)
    directory = families.make(tmp_path / "model", name)
    base = load_base(str(directory), device="cpu", dtype="float32", chat_template=given)
    pieces = _InPieces()
    base = dataclasses.replace(base, graphs=pieces)  # type: ignore[arg-type]
    builder, prefiller = PromptBuilder(base), Prefiller(base, ImageFeatures(1 << 24))
    with torch.inference_mode():
        probe = selfcheck.TrialPrompt(base, builder, [selfcheck.blocks(0, (96, 96))], "probe")
        assert selfcheck.decode_error(base, prefiller, probe) < 1e-3
    if name in QUICK:
        layers = base.model.config.get_text_config().num_hidden_layers
        assert pieces.steps == 5
        assert pieces.cuts == list(range(layers)) * pieces.steps


def test_a_recording_has_a_power_of_two_rows() -> None:
    assert [graphs.rows_for(count) for count in (1, 8, 9, 64, 65, 512)] == [8, 8, 16, 64, 128, 512]


def test_graphs_need_a_gpu_and_a_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Triton compiles each kernel's launcher when it is first used: a container without gcc is found at start."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert graphs.StepGraphs.of(torch.device("cpu"), torch.float32) is None
    assert not caplog.messages
    assert graphs.StepGraphs.of(torch.device("cuda"), torch.float32) is None
    assert "install gcc, or set CC" in caplog.text
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/gcc" if name == "gcc" else None)
    assert graphs.StepGraphs.of(torch.device("cuda"), torch.float32) is not None


def test_kernels_or_graphs_that_are_wrong_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-check then decodes without them, and the engine starts."""
    base = load_base(str(families.make(tmp_path, "llava")), device="cpu", dtype="float32", chat_template=None)
    base = dataclasses.replace(base, graphs=graphs.StepGraphs(torch.device("cpu"), torch.float32))
    assert base.graphs is not None
    steps: list[bool] = []

    def wrong(*args: Any, **kwargs: Any) -> torch.Tensor:
        steps.append(base.fused)
        raise RuntimeError("no C compiler")

    monkeypatch.setattr("sightline_sampler.engines.local.fused_attention.attend", wrong)
    selfcheck.check(base, PromptBuilder(base), Prefiller(base, ImageFeatures(1 << 24)))
    assert steps
    assert not base.fused
    assert base.graphs.off == "RuntimeError: no C compiler"


class _Calls:
    """Notes what an engine asks of its recordings."""

    fused = False

    def __init__(self) -> None:
        self.made: list[object] = []

    def run(self, *args: object) -> None:
        """No step is recorded."""

    def forget(self, version: int) -> None:
        self.made.append(version)

    def clear(self) -> None:
        self.made.append("all")


def test_recordings_are_dropped_with_their_weights(tmp_path: Path) -> None:
    """They hold addresses of the weights."""
    base = load_base(str(families.make(tmp_path, "llava")), device="cpu", dtype="float32", chat_template=None)
    calls = _Calls()
    base = dataclasses.replace(base, graphs=calls)  # type: ignore[arg-type]
    weights, prefiller = Weights(base), Prefiller(base, ImageFeatures(1 << 24))
    weights.drop(3)
    assert calls.made == [3]
    with torch.inference_mode():
        rest = Rest(base, weights, prefiller, PromptBuilder(base))
        assert calls.made == [3, "all"]
    rest.end()


def _lane(base: BaseModel, *, prompts: int, rows: int, tokens: int, version: int = 0) -> Lane:
    lane, prefiller, builder = Lane(base, version), Prefiller(base, ImageFeatures(1 << 24)), PromptBuilder(base)
    for number in range(prompts):
        image = selfcheck.blocks(number, (96, 96))
        prepared = builder.prepare(user_turn(selfcheck.QUESTION, 1), [image], f"image-{number}")
        work = SampleWork("graphs", Conversation(()), seeds.derive(number, rows), SamplingParams(), selfcheck._Base())
        request = Request(work, prepared, tokens, asyncio.Queue())
        lane.add(prefiller.run(base.model, [prepared], 0), [0], [request], [rows])
    return lane


def _stepped(base: BaseModel, model: Any, *, steps: int, version: int = 0) -> torch.Tensor:
    """Log-probs of given tokens, (steps, rows, vocabulary)."""
    ids = np.random.default_rng(0).integers(8, base.vocabulary, (steps, 6))
    found = []
    with torch.inference_mode():
        lane = _lane(base, prompts=2, rows=3, tokens=steps + 2, version=version)
        for step in range(steps):
            lane.sample()
            lane._rows.tokens[lane._rows.place, lane._rows.generated - 1] = ids[step]
            lane.forward(model)
            assert lane._logits is not None
            found.append(lane._logits[:6].log_softmax(-1).cpu())
    return torch.stack(found)


@pytest.fixture
def on_a_gpu(tmp_path: Path) -> BaseModel:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    directory = families.make(tmp_path / "model", "llava")
    return load_base(str(directory), device="cuda", dtype="float32", chat_template=None)


@pytest.mark.gpu
def test_graphs_give_the_log_probs_of_a_step_without(on_a_gpu: BaseModel) -> None:
    base = on_a_gpu
    assert base.graphs is not None
    found = _stepped(base, base.model, steps=40)
    assert len(base.graphs) == 1
    wanted = _stepped(dataclasses.replace(base, graphs=None), base.model, steps=40)
    assert float((found - wanted).abs().max()) < 1e-3
    Weights(base).drop(0)
    assert len(base.graphs) == 0


@pytest.mark.gpu
def test_a_model_that_waits_for_the_gpu_runs_without_graphs_and_random_numbers_still_work(on_a_gpu: BaseModel) -> None:
    base = on_a_gpu
    assert base.graphs is not None
    wanted = _stepped(dataclasses.replace(base, graphs=None), base.model, steps=6)

    def waits(module: Any, args: Any, out: Any) -> None:
        assert torch.isfinite((out[0] if isinstance(out, tuple) else out).sum()).item()

    base.model.get_decoder().layers[0].register_forward_hook(waits)
    found = _stepped(base, base.model, steps=6)
    assert "cannot be recorded" in base.graphs.off
    assert float((found - wanted).abs().max()) < 1e-3
    assert torch.isfinite(torch.randn(8, device="cuda")).all()
