"""Rest: an engine frees its memory while another process needs it, such as a trainer on the same GPU, and restores it
afterwards.

On a GPU, the weights are moved to main memory; on a CPU, they are released and read from their files again. Adapters
stay, since they are small. That the weights came back is checked: every version must give the same log-probs for a
prompt as before.
"""

from __future__ import annotations

import ctypes
import gc
import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from sightline.errors import InternalError
from sightline.sampler.turns import user_turn
from torch import Tensor

from sightline_sampler.engines.local.model import BaseModel, load_weights
from sightline_sampler.engines.local.prefill import Prefiller
from sightline_sampler.engines.local.prompts import PromptBuilder
from sightline_sampler.engines.local.selfcheck import QUESTION, blocks
from sightline_sampler.engines.local.weights import Weights

logger = logging.getLogger(__name__)

APART = 1e-4
"""Maximum difference of a log-probability after the rest, in nats; on a CPU it is the same to the last bit."""
_MOST = 1 << 10  # tensors with up to this many numbers are not moved


class Rest:
    """An engine's weights, moved away. For the decoding thread, with nothing running.

    Args:
        base, weights, prefiller, builder: the engine's.
    """

    def __init__(self, base: BaseModel, weights: Weights, prefiller: Prefiller, builder: PromptBuilder) -> None:
        self._base, self._weights, self._prefiller = base, weights, prefiller
        self._prompt = builder.prepare(user_turn(QUESTION, 1), [blocks(0, (96, 96))], "rest")
        self._said = self._say()
        self._out: list[tuple[Tensor, Tensor]] = []
        prefiller.features.clear()
        if base.graphs is not None:
            base.graphs.clear()
        if base.device.type == "cpu":
            for parameter in self._large():
                parameter.data = torch.empty(0, dtype=parameter.dtype)
            self._copy_small()
        else:
            self._out = [(parameter, parameter.data.to("cpu")) for parameter in self._large()]
            for parameter, _ in self._out:
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=base.device)
        give_back(base.device)

    @torch.no_grad()
    def end(self) -> None:
        """Bring the weights back.

        Raises:
            InternalError: WEIGHTS_DID_NOT_COME_BACK: a version gives other log-probs than before.
            PreconditionFailed: their files no longer exist.
        """
        for parameter, waiting in self._out:
            parameter.data = waiting.to(self._base.device)
        self._out = []
        if self._base.device.type == "cpu":
            self._read()
        for version, said in self._say().items():
            apart = float((said - self._said[version]).abs().max())
            if not apart <= APART:
                raise InternalError(
                    f"after a pause policy {version} gives other log-probs than before: {apart:.2g} nats apart",
                    reason="WEIGHTS_DID_NOT_COME_BACK",
                )

    def _say(self) -> dict[int, Tensor]:
        """Log-probabilities of the next token after a prompt, by version."""
        said = {}
        for version in self._weights.versions():
            model = self._weights.use(version)
            logits = self._prefiller.run(model, [self._prompt], self._weights.vision_key(version)).logits[0]
            said[version] = torch.log_softmax(logits.double(), dim=-1).cpu()
        self._prefiller.features.clear()
        return said

    def _large(self) -> Iterator[Any]:
        self._weights.use(0)  # so that the base model's own modules are in place
        for model, _ in self._weights.models():
            for name, parameter in model.named_parameters():
                held = parameter.is_floating_point() or self._base.device.type != "cpu"  # 4-bit weights on a CPU stay
                if ".lora_" not in name and parameter.numel() > _MOST and held:
                    yield parameter

    def _copy_small(self) -> None:
        """Copy the small tensors that stay: they are parts of the mapped file and would keep all of it in memory."""
        for model, _ in self._weights.models():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data = tensor.data.clone()

    def _read(self) -> None:
        self._weights.use(0)
        dtype = str(self._base.dtype).removeprefix("torch.")
        for model, directory in self._weights.models():
            fresh = dict(load_weights(directory, self._base.device, dtype, strict=False).named_parameters())
            for name, parameter in model.named_parameters():
                if not parameter.numel():
                    parameter.data = fresh[name.replace(".base_layer.", ".")].data


def give_back(device: torch.device) -> None:
    """Make the allocators return free memory to the system."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
