"""Decoding steps as CUDA graphs: the GPU gets a layer's kernels by one call, where Python needs 10 us for each of them.

Attention depends on the rows' lengths, segments and stems, and everything else of a step only on the number of rows. So
a step is recorded in pieces that end where a layer's attention begins (as vLLM's piecewise graphs): a piece is played,
attention runs as it always does (`fused_attention`), and the next piece is played. A recording belongs to a policy and
a number of rows, which is rounded up to a power of two, and nothing in it depends on which rows these are.

A recording is made when a step of its size has run a few times. A model that cannot be recorded (its forward waits for
the GPU, or its layers keep a state) runs without graphs, as on a CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections import Counter
from typing import Any

import torch
from sightline.errors import first_line
from sightline_chassis.kernels import kernels_unusable
from transformers.cache_utils import Cache

from sightline_sampler.engines.local.fused_attention import attend
from sightline_sampler.engines.local.kv import RowCache, TokenLayer
from sightline_sampler.engines.local.token_pass import pass_tokens

logger = logging.getLogger(__name__)

LEAST_ROWS, MOST_ROWS = 8, 1024
_PATIENCE = 2  # steps of a size before it is recorded
_KEPT = 24  # recordings; the oldest is dropped


class StepGraphs:
    """All recordings of an engine. Only the decoding thread uses it.

    Args:
        device: the GPU.
        dtype: the model's.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._recordings: dict[tuple[int, int, int], _Recording] = {}
        self._steps: Counter[tuple[int, int, int]] = Counter()
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None  # memory that all recordings use, since no two are played at the same time
        self.off = ""
        """Why nothing is recorded; "" while it is."""
        self.fused = True
        """Whether attention runs by fused kernels, which recordings need."""

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> StepGraphs | None:
        """For a model on this device; None on a CPU, or, with a warning, where kernels cannot run."""
        if device.type != "cuda":
            return None
        if why := kernels_unusable():
            logger.warning("decoding runs without fused attention and CUDA graphs: %s", why)
            return None
        return cls(device, dtype)

    def __len__(self) -> int:
        return len(self._recordings)

    def run(
        self, model: Any, version: int, cache: RowCache, ids: torch.Tensor, positions: torch.Tensor, axes: int
    ) -> torch.Tensor | None:
        """A step by a recording, or None if it has to run without one.

        Args:
            model: the model, with the policy switched on.
            version: of the policy.
            cache: wide enough, and aimed at the new tokens' slots.
            ids: (rows,), on the CPU.
            positions: (rows,), on the CPU.
            axes: number of position dimensions, for models with several; otherwise 0.

        Returns:
            Logits (at least rows, vocabulary).
        """
        if self.off or not cache.fused or not cache.plain or len(ids) > MOST_ROWS:
            return None
        key = version, rows_for(len(ids)), axes
        if key not in self._recordings:
            self._steps[key] += 1
            if self._steps[key] <= _PATIENCE or not self._record(model, key, cache):
                return None
        return self._recordings[key].play(cache, ids, positions)

    def forget(self, version: int) -> None:
        """Drop a policy's recordings."""
        self._drop([key for key in self._recordings if key[0] == version])

    def clear(self) -> None:
        """Drop all recordings: the weights are about to move."""
        self._drop(list(self._recordings))

    def stop(self, why: str, *, fused: bool) -> None:
        """Record nothing any more, and without `fused` use no fused kernels either."""
        logger.warning("decoding runs without CUDA graphs%s: %s", "" if fused else " and fused attention", why)
        self.off, self.fused = why, fused
        self.clear()

    def _drop(self, keys: list[tuple[int, int, int]]) -> None:
        if keys:
            torch.cuda.synchronize(self._device)
        for key in keys:
            del self._recordings[key]
            del self._steps[key]

    def _record(self, model: Any, key: tuple[int, int, int], cache: RowCache) -> bool:
        if len(self._recordings) >= _KEPT:
            self._drop([next(iter(self._recordings))])
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        if not self._recordings:
            self._pool = torch.cuda.graph_pool_handle()
        version, rows, axes = key
        began = time.monotonic()
        index = self._device.index
        generator = torch.cuda.default_generators[torch.cuda.current_device() if index is None else index]
        state = generator.clone_state()
        try:
            self._recordings[key] = _Recording(model, rows, axes, cache, self._dtype, self._stream, self._pool)
        except Exception as error:  # whatever a model's code does that cannot be recorded
            torch.cuda.synchronize(self._device)
            generator.graphsafe_set_state(state)  # a failed recording leaves PyTorch's generator inside it
            why = f"{type(model).__name__} cannot be recorded ({type(error).__name__}: {first_line(error)})"
            self.stop(why, fused=True)
            return False
        took = round(time.monotonic() - began, 3)
        logger.info("recorded a decoding step", extra={"policy": version, "rows": rows, "seconds": took})
        return True


def rows_for(count: int) -> int:
    """Rows of the recording for a step of `count` rows: a power of two."""
    return max(LEAST_ROWS, 1 << (count - 1).bit_length())


@dataclasses.dataclass(slots=True)
class _Cut:
    """What a layer's attention needs between two pieces, and where its result goes."""

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    out: torch.Tensor
    scaling: float | None


class CutKeys:
    """Passes through a model instead of keys: tells the attention that the piece ends here."""

    def __init__(self, recording: _Recording, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        self._recording, self._layer, self._new = recording, layer, (key, value)

    def cut(self, query: torch.Tensor, scaling: float | None) -> torch.Tensor:
        """End the piece; returns the tensor that will hold the attention's result, (rows, 1, heads, dim)."""
        return self._recording.cut(self._layer, query, *self._new, scaling)


class _Recording:
    """A step for `rows` rows of a policy."""

    def __init__(
        self,
        model: Any,
        rows: int,
        axes: int,
        cache: RowCache,
        dtype: torch.dtype,
        stream: torch.cuda.Stream,
        pool: Any,
    ) -> None:
        device = stream.device
        self._ids = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self._positions = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._cuts: list[_Cut] = []
        self._buffers: dict[tuple[object, ...], torch.Tensor] = {}
        self._pool = pool
        self._recording = False
        keys = _CutCache(self, cache)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for self._recording in (False, True):  # the first pass makes kernels and buffers ready
                self._cuts.clear()
                try:
                    self._begin()
                    logits = pass_tokens(model, self._ids, self._positions, axes, keys, dtype)
                    self._end()
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # of the failed capture
                        self._end()
                    raise
                stream.synchronize()
        torch.cuda.current_stream(device).wait_stream(stream)
        self._logits = logits

    def play(self, cache: RowCache, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One step of the rows of `cache`."""
        count = len(ids)
        self._ids[:count, 0].copy_(ids)
        self._positions[:count, 0].copy_(positions)
        for graph, cut in zip(self._graphs, self._cuts, strict=False):
            graph.replay()
            attend(cut.query, cache.slots(cut.layer, cut.key, cut.value), cut.scaling, cut.out)
        self._graphs[-1].replay()
        return self._logits[:count].clone()  # other rows of this policy may take the next step

    def cut(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """End a piece and begin the next one."""
        query, key, value = (self._held(name, one) for name, one in zip("qkv", (query, key, value), strict=True))
        shape = query.shape[0], 1, query.shape[1], value.shape[3]
        out = self._buffers.setdefault(("out", shape), query.new_zeros(shape))
        self._end()
        self._cuts.append(_Cut(layer, query, key, value, out, scaling))
        self._begin()
        return out

    def _held(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in a tensor that all layers use."""
        key = name, tuple(tensor.shape), tensor.dtype
        if key not in self._buffers:
            self._buffers[key] = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        return self._buffers[key].copy_(tensor)

    def _begin(self) -> None:
        if self._recording:
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            self._graphs.append(graph)

    def _end(self) -> None:
        if self._recording:
            self._graphs[-1].capture_end()


class _CutLayer(TokenLayer):
    def __init__(self, recording: _Recording, number: int, seen: int) -> None:
        super().__init__()
        self.recording, self.number, self.seen = recording, number, seen

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Pass the new keys and values on to the attention."""
        cut = CutKeys(self.recording, self.number, key_states, value_states)
        return cut, cut

    def get_seq_length(self) -> int:
        """As a row cache's."""
        return self.seen


class _CutCache(Cache):
    """Stands for a row cache while a step is recorded."""

    def __init__(self, recording: _Recording, like: RowCache) -> None:
        seen = like.get_seq_length()
        super().__init__(layers=[_CutLayer(recording, number, seen) for number in range(len(like.layers))])
