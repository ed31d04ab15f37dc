"""The engine's self-check at start, on the loaded model, before it answers.

Architectures differ in how they take positions, masks, caches and image features. Instead of a list of supported ones,
each technique of this engine is compared with the model's own plain forward pass on one processor call, on probe images
of three shapes, and on two images and three turns if the model takes several:

- attention: the row-wise one compared with the architecture's own, on the prompt;
- features: image features computed separately and passed in, two images at once, compared with passing pixels (if they
differ, pixels are passed each time, and features are not cached);
- the last layer: what no logit needs is left out only where all bits stay the same;
- decoding: rows in the row cache, and a given response, compared with one forward pass of prompt and response.

In half precision a model differs from itself by rounding, so the engine may differ by twice that.

If attention or decoding differ, the engine refuses to start, since it would give wrong candidates. If they differ only
with two images, it takes one image. The effect of the images is measured too, since without an effect a difference
would not show.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from sightline.errors import InvalidInput, PreconditionFailed, SightlineError, first_line
from sightline.sampler.params import SamplingParams
from sightline.sampler.turns import Turn, user_turn

from sightline_sampler.engines import seeds
from sightline_sampler.engines.base import Conversation, SampleWork
from sightline_sampler.engines.local import attention, teacher
from sightline_sampler.engines.local.features import Features
from sightline_sampler.engines.local.lane import Lane
from sightline_sampler.engines.local.last_layer import NarrowLayer
from sightline_sampler.engines.local.model import BaseModel
from sightline_sampler.engines.local.prefill import Prefiller, decoder_positions
from sightline_sampler.engines.local.prompts import PromptBuilder
from sightline_sampler.engines.local.rows import Request

logger = logging.getLogger(__name__)

_STEPS = 6
QUESTION = "What is in the picture?"
_SHAPES = ((96, 96), (96, 96), (180, 60), (64, 112))  # the first two have one shape, so that they run together
# Difference of log-probabilities: the largest one; in half precision the mean, weighted by the probability. There
# rounding alone moves a few of many thousands by more (0.63 nats seen with 7 B parameters in bfloat16).
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}


class _Base:
    """Replaces a lease on the base model."""

    def bind(self) -> int:
        return 0


class TrialPrompt:
    """A prompt with images, as prepared by the engine and as given by one processor call."""

    def __init__(
        self,
        base: BaseModel,
        builder: PromptBuilder,
        images: Sequence[Image.Image],
        name: str,
        turns: Sequence[Turn] | None = None,
    ) -> None:
        self.prepared = builder.prepare(turns or user_turn(QUESTION, len(images)), images, name)
        self.call = base.processing.call([self.prepared.rendered], [list(images)])


@torch.inference_mode()
def check(base: BaseModel, builder: PromptBuilder, prefiller: Prefiller) -> None:
    """Run all checks; set the attention and `prefiller.sharing`.

    Raises:
        PreconditionFailed: this engine cannot decode the model; MODEL_FAILS_FORWARD if the model itself raises an
            error.
    """
    images = [blocks(seed, size) for seed, size in enumerate(_SHAPES)]
    try:
        probes = [TrialPrompt(base, builder, [image], f"probe-{i}") for i, image in enumerate(images)]
        _check(base, probes, prefiller)
        if not base.processing.one_image_only:
            base.processing.one_image_only = _one_only(base, builder, prefiller, images[1:3])
    except SightlineError:
        raise
    except Exception as error:  # a model's code, its processor or its files may raise anything
        raise PreconditionFailed(
            f"the model {base.directory} fails its trial forward: {type(error).__name__}: {first_line(error)}",
            reason="MODEL_FAILS_FORWARD",
        ) from error


def _check(base: BaseModel, probes: list[TrialPrompt], prefiller: Prefiller) -> None:
    limit = _limit(base, probes[1:])
    prefiller.sharing = prefiller.last_layer = None
    apart = max(attention_error(base, probe) for probe in probes[1:])
    _refuse_over(limit, apart, base, "attends")
    prefiller.sharing = _sharing(base, prefiller, probes[:2], limit)
    prefiller.last_layer = _last_layer(base, prefiller, probes)
    worst = _decodes(base, prefiller, probes[1:], limit)
    _refuse_over(limit, worst, base, "decodes")
    first, second = (_plain(base, probe)[0] for probe in probes[:2])
    matters = _apart(first, second, torch.bfloat16)
    if matters <= limit:
        logger.warning("the self-check's images change log-probabilities by only %.3g: it proves little", matters)
    logger.info(
        "self-check passed",
        extra={
            "shares_features": prefiller.sharing is not None,
            "narrows_last_layer": prefiller.last_layer is not None,
            "largest_difference": worst,
            "image_matters": matters,
        },
    )


def _last_layer(base: BaseModel, prefiller: Prefiller, probes: Sequence[TrialPrompt]) -> NarrowLayer | None:
    """The last layer, if leaving out what no logit needs changes no bit of the logits."""
    layer = NarrowLayer.of(base)
    if layer is None:
        return None
    for some in (probes[:2], *([probe] for probe in probes[1:])):  # the first two have one shape
        prompts = [probe.prepared for probe in some]
        whole = prefiller.run(base.model, prompts, 0).logits
        with layer.narrow():
            narrow = prefiller.run(base.model, prompts, 0).logits
        if not torch.equal(whole, narrow):
            return None
    return layer


def _decodes(base: BaseModel, prefiller: Prefiller, probes: Sequence[TrialPrompt], limit: float) -> float:
    """Largest difference in decoding. If fused kernels or graphs cause one over the limit, they are not used."""
    if base.graphs is not None and base.fused:
        try:
            worst = max(decode_error(base, prefiller, probe) for probe in probes)
            if worst <= limit:
                return worst
            why = f"log-probabilities differ from those of a plain forward by up to {worst:.3g}"
        except Exception as error:  # Triton needs a C compiler, a driver, and shapes that it supports
            why = f"{type(error).__name__}: {first_line(error)}"
        base.graphs.stop(why, fused=False)
    return max(decode_error(base, prefiller, probe) for probe in probes)


def _limit(base: BaseModel, probes: Sequence[TrialPrompt]) -> float:
    """Maximum difference of the engine: in half precision, at least twice the model's own rounding.

    The rounding is the difference between plain forward passes with transformers' fused and unfused attention, the same
    formula with another order of additions. With 7 B random parameters in bfloat16 it is over 0.05 nats.
    """
    limit = TOLERANCE.get(base.dtype, 0.05)
    if base.dtype.itemsize >= 4:
        return limit
    return max(limit, 2 * max(_rounding(base, probe) for probe in probes))


def _rounding(base: BaseModel, probe: TrialPrompt) -> float:
    """The model's rounding, measured as for `TOLERANCE`; 0 for an architecture without two kinds of attention."""
    try:
        base.model.set_attn_implementation("eager")
        unfused = _plain(base, probe)
        base.model.set_attn_implementation("sdpa")
        return _apart(_plain(base, probe), unfused, base.dtype)
    except (ValueError, NotImplementedError):
        return 0.0
    finally:
        base.model.set_attn_implementation(attention.NAME)


def _one_only(base: BaseModel, builder: PromptBuilder, prefiller: Prefiller, images: Sequence[Image.Image]) -> str:
    """Why the engine takes one image per prompt; "" if several give the same as a plain forward pass."""
    name = type(base.model).__name__
    turns = (Turn("user", (None, QUESTION)), Turn("assistant", ("A house.",)), Turn("user", (None, "And here?")))
    try:
        try:
            probe = TrialPrompt(base, builder, images, "probe-several", turns)
        except InvalidInput:  # a template for one turn
            probe = TrialPrompt(base, builder, images, "probe-several")
        limit = _limit(base, [probe])
        apart = max(attention_error(base, probe), decode_error(base, prefiller, probe))
    except Exception as error:  # a model's code or its processor may raise anything
        return f"{name} fails on two in a prompt ({first_line(error)})"
    return "" if apart <= limit else f"{name} decodes two in a prompt wrongly in this engine (by {apart:.3g})"


def blocks(seed: int, size: tuple[int, int]) -> Image.Image:
    """An image with sixteen colours, which any tower distinguishes, even one trained on drawings."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)


def _plain(base: BaseModel, probe: TrialPrompt, response: torch.Tensor | None = None) -> torch.Tensor:
    """Log-probabilities of the next token after the prompt, and after each token of a response, by one forward pass."""
    call: dict[str, Any] = dict(probe.call)
    length = call["input_ids"].shape[1]
    if response is not None:
        count = len(response)
        tokens = {name: call[name] for name in base.processing.token_names if name in call}
        call |= base.processing.continued(tokens, count)
        call["input_ids"] = torch.cat([call["input_ids"], response[None].cpu()], dim=1)
    call["attention_mask"] = torch.ones_like(call["input_ids"])
    moved = {name: tensor.to(base.device) for name, tensor in call.items()}
    moved = {name: t.to(base.dtype) if t.is_floating_point() else t for name, t in moved.items()}
    logits = decoder_positions(base.model, {**moved, "use_cache": False})[1].logits
    return torch.log_softmax(logits[0, length - 1 :].double(), dim=-1)


def _refuse_over(limit: float, difference: float, base: BaseModel, does: str) -> None:
    if not difference <= limit:
        raise PreconditionFailed(
            f"{type(base.model).__name__} {does} wrongly in this engine: log-probabilities differ from those of a "
            f"plain forward by up to {difference:.3g}",
            reason="ARCHITECTURE_UNSUPPORTED",
        )


def attention_error(base: BaseModel, probe: TrialPrompt) -> float:
    """Difference between row-wise attention and the architecture's own, measured as for `TOLERANCE`."""
    base.model.set_attn_implementation("eager")
    wanted = _plain(base, probe)
    base.model.set_attn_implementation(attention.NAME)
    try:
        return _apart(_plain(base, probe), wanted, base.dtype)
    except NotImplementedError as error:
        raise PreconditionFailed(
            f"{type(base.model).__name__} cannot run in this engine: {error}", reason="ARCHITECTURE_UNSUPPORTED"
        ) from error


def _sharing(base: BaseModel, prefiller: Prefiller, probes: list[TrialPrompt], limit: float) -> Features | None:
    prompts = [probe.prepared for probe in probes]
    if prompts[0].shape() != prompts[1].shape() or base.processing.text_decides:
        return None
    wanted = [_plain(base, probe)[0] for probe in probes]
    try:
        sharing = Features(base.model, prefiller.joined(prompts), prefiller.joined(prompts[:1]))
        prefiller.sharing = sharing
        prefix = prefiller.run(base.model, prompts, 0)
    except SightlineError:
        raise
    except Exception as error:  # an architecture without this may raise anything
        logger.info("image features cannot be shared: %s", error)
        return None
    finally:
        prefiller.sharing = None
        prefiller.features.clear()
    found = torch.log_softmax(prefix.logits[:2].double(), dim=-1)
    return sharing if all(_apart(found[i], wanted[i], base.dtype) <= limit for i in range(2)) else None


def _apart(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> float:
    """Difference between log-probabilities (..., vocabulary), measured as for `TOLERANCE`."""
    apart = (found - wanted).abs()
    if dtype.itemsize >= 4:
        return float(apart.max())
    return float((wanted.exp() * apart).sum(dim=-1).mean())


def decode_error(base: BaseModel, prefiller: Prefiller, probe: TrialPrompt) -> float:
    """Sample a few tokens in two rows and compare their log-probabilities with a plain forward pass for each."""
    prompt = probe.prepared
    work = SampleWork("self-check", Conversation(()), seeds.derive(0, 2), SamplingParams(), _Base())
    request = Request(work, prompt, _STEPS, asyncio.Queue())
    prefix = prefiller.run(base.model, [prompt], 0)
    lane = Lane(base, 0)
    lane.add(prefix, [0], [request], [2])
    apart: list[torch.Tensor] = []
    while len(lane):
        for _, finished in lane.sample():
            if isinstance(finished, BaseException):
                raise finished
            ids = torch.from_numpy(finished.token_ids).to(base.device)
            plain = _plain(base, probe, ids[:-1])
            wanted = plain.gather(1, ids[:, None])[:, 0].cpu()
            scored = teacher.forced(base, base.model, prefiller.run(base.model, [prompt], 0), ids)
            apart += [(wanted - torch.from_numpy(finished.logprobs).double()).abs(), (wanted - scored.cpu()).abs()]
        if len(lane):
            lane.forward(base.model)
    prefiller.features.clear()
    differences = torch.cat(apart)
    return float(differences.mean() if base.dtype.itemsize < 4 else differences.max())
