"""What the engine proves at start, on the model it has just loaded, before it answers anyone.

Architectures differ in how they take positions, masks, caches and image features. In place of a list of blessed ones,
each way of this engine is compared with the model's own plain forward on a probe image and prompt:

- attention: the row-wise one against the architecture's own, on the prompt;
- features: image features computed apart and handed in, two images at once, against pixels handed in (else pixels are
  handed in each time, and features are not kept);
- decoding: rows in the row cache against the forward of prompt and response in one piece.

Where attention or decoding differ, the engine refuses to start: it would give wrong candidates.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import torch
from PIL import Image
from sightline.errors import PreconditionFailed, SightlineError
from sightline.sampler.params import SamplingParams

from sightline_sampler.engines import seeds
from sightline_sampler.engines.base import SampleWork
from sightline_sampler.engines.local import attention
from sightline_sampler.engines.local.lane import Lane
from sightline_sampler.engines.local.model import BaseModel, first_line
from sightline_sampler.engines.local.prefill import Prefiller
from sightline_sampler.engines.local.prompts import Prepared, PromptBuilder
from sightline_sampler.engines.local.rows import Request

logger = logging.getLogger(__name__)

_STEPS = 4
# Of a log-probability: the largest difference, in half precision the mean one. There rounding alone moves single ones
# of many thousands by more (0.63 nats seen with 7 B parameters in bfloat16); a wrong mask or place moves all by nats.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.2}


class _Base:
    """Stands for a lease on the base model."""

    def bind(self) -> int:
        return 0


@torch.inference_mode()
def check(base: BaseModel, builder: PromptBuilder, prefiller: Prefiller) -> None:
    """Run all checks; set the attention and `prefiller.shares_features`.

    Raises:
        PreconditionFailed: this engine cannot decode the model; MODEL_FAILS_FORWARD where a forward ends in an error of
            the model's own.
    """
    try:
        _check(base, builder, prefiller)
    except SightlineError:
        raise
    except Exception as error:  # whatever a model's code, its processor or its files may raise
        raise PreconditionFailed(
            f"the model {base.directory} fails its trial forward: {type(error).__name__}: {first_line(error)}",
            reason="MODEL_FAILS_FORWARD",
        ) from error


def _check(base: BaseModel, builder: PromptBuilder, prefiller: Prefiller) -> None:
    noise = [Image.effect_noise((96, 96), sigma).convert("RGB") for sigma in (40, 90)]
    prompts = [builder.prepare("What is in the picture?", image, f"probe-{i}") for i, image in enumerate(noise)]
    limit = _TOLERANCE.get(base.dtype, 0.5)
    prefiller.shares_features = False
    _refuse_over(limit, _attention_error(base, prompts[0]), base, "attends")
    prefiller.shares_features = _shares_features(base, prefiller, prompts, limit)
    worst = _decode_error(base, prefiller, prompts[0])
    _refuse_over(limit, worst, base, "decodes")
    logger.info(
        "self-check passed",
        extra={
            "shares_features": prefiller.shares_features,
            "largest_difference": worst,
        },
    )


def _plain(base: BaseModel, prompt: Prepared, response: torch.Tensor | None = None) -> torch.Tensor:
    """Log-probabilities of the next token after the prompt, and after each token of a response, by one forward."""
    ids = prompt.ids.to(base.device)[None]
    extras = {name: tensor.to(base.device) for name, tensor in prompt.extras.items()}
    if response is not None:
        ids = torch.cat([ids, response[None]], dim=1)
        extras = {k: torch.cat([t, t.new_zeros(1, len(response))], dim=1) for k, t in extras.items()}
    pixels: dict[str, Any] = {
        k: t.to(base.device, base.dtype) if t.is_floating_point() else t.to(base.device)
        for k, t in prompt.pixels.items()
    }
    core = getattr(base.model, "model", base.model)
    if hasattr(core, "rope_deltas"):
        core.rope_deltas = None
    logits = base.model(input_ids=ids, attention_mask=torch.ones_like(ids), **extras, **pixels, use_cache=False).logits
    return torch.log_softmax(logits[0, len(prompt.ids) - 1 :].double(), dim=-1)


def _refuse_over(limit: float, difference: float, base: BaseModel, does: str) -> None:
    if not difference <= limit:
        raise PreconditionFailed(
            f"{type(base.model).__name__} {does} wrongly in this engine: log-probabilities differ from those of a "
            f"plain forward by up to {difference:.3g}",
            reason="ARCHITECTURE_UNSUPPORTED",
        )


def _attention_error(base: BaseModel, prompt: Prepared) -> float:
    base.model.set_attn_implementation("eager")
    wanted = _plain(base, prompt)
    base.model.set_attn_implementation(attention.NAME)
    try:
        return _apart(_plain(base, prompt), wanted, base.dtype)
    except NotImplementedError as error:
        raise PreconditionFailed(
            f"{type(base.model).__name__} cannot run in this engine: {error}", reason="ARCHITECTURE_UNSUPPORTED"
        ) from error


def _shares_features(base: BaseModel, prefiller: Prefiller, prompts: list[Prepared], limit: float) -> bool:
    if prompts[0].shape() != prompts[1].shape():
        return False
    wanted = [_plain(base, prompt)[0] for prompt in prompts]
    prefiller.shares_features = True
    try:
        prefix = prefiller.run(base.model, prompts, 0)
    except Exception as error:  # whatever an architecture that has no such way may raise
        logger.info("image features cannot be shared: %s", error)
        return False
    finally:
        prefiller.features.clear()
    found = torch.log_softmax(prefix.logits[:2].double(), dim=-1)
    return all(_apart(found[i], wanted[i], base.dtype) <= limit for i in range(2))


def _apart(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> float:
    """How far log-probabilities are apart, as `_TOLERANCE` counts it."""
    apart = (found - wanted).abs()
    return float(apart.mean() if dtype.itemsize < 4 else apart.max())


def _decode_error(base: BaseModel, prefiller: Prefiller, prompt: Prepared) -> float:
    """Sample a few tokens in two rows and compare their log-probabilities with one plain forward each."""
    work = SampleWork("self-check", "", None, seeds.derive(0, 2), SamplingParams(), _Base())
    request = Request(work, prompt, _STEPS, asyncio.Queue())
    prefix = prefiller.run(base.model, [prompt], 0)
    prefiller.features.clear()
    lane = Lane(base, 0)
    lane.add(prefix, [0], [request], [2])
    apart: list[float] = []
    while len(lane):
        for _, finished in lane.sample():
            if isinstance(finished, BaseException):
                raise finished
            ids = torch.from_numpy(finished.token_ids).to(base.device)
            plain = _plain(base, prompt, ids[:-1])
            wanted = plain.gather(1, ids[:, None])[:, 0].cpu()
            apart += (wanted - torch.from_numpy(finished.logprobs).double()).abs().tolist()
        if len(lane):
            lane.forward(base.model)
    differences = torch.tensor(apart)
    return _apart(differences, torch.zeros_like(differences), base.dtype)
