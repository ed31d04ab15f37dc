"""The engine in process: any image-text-to-text model of transformers, with its own decode loop.

How it works: a pool renders, tokenises and preprocesses; one thread (`loop`) owns the model; each image is encoded once
(`prefill`), each prompt run once, its keys and values copied for the K candidates (`kv`); rows of all requests decode
together and leave when they end (`lane`); each candidate draws from its own generator (`seeds`, `sampling`). On a GPU,
a step runs by fused attention kernels (`fused_attention`) and recorded CUDA graphs (`graphs`).

A candidate depends only on weights, image, prompt, parameters and seed: rows are never padded to each other, and on a
CPU only kernels are used that treat all rows alike (`attention`). In float32 with one thread even the bits of its
log-probs do not depend on K or the batch (measured on 4096 candidates); with more threads the last bit may, and ids
differ where a uniform number falls within that bit of a boundary, about once in 1e6 tokens. In half precision on a GPU
the same seed gives the same candidate in a batch of the same shape; across shapes, rounding may change a token.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
import transformers
from PIL import Image
from sightline.errors import InvalidInput, Unavailable
from sightline.sampler.manifest import PolicyManifest
from sightline.sampler.params import OPTIONS
from sightline.sampler.types import Candidate, Capabilities, Distortion, ImageFree, Prompted, Summary, TokenScores
from sightline_chassis.images import decode

from sightline_sampler.engines.base import Conversation, EncodedImage, Engine, SampleWork, ScoreWork, StagedWeights
from sightline_sampler.engines.local import selfcheck
from sightline_sampler.engines.local.loop import DecodeLoop
from sightline_sampler.engines.local.memory import free_bytes
from sightline_sampler.engines.local.model import BaseModel, load_base
from sightline_sampler.engines.local.prefill import ImageFeatures, Prefiller
from sightline_sampler.engines.local.prompts import Prepared, PromptBuilder
from sightline_sampler.engines.local.rest import Rest, give_back
from sightline_sampler.engines.local.rows import Request
from sightline_sampler.engines.local.stops import cut
from sightline_sampler.engines.local.teacher import Teacher
from sightline_sampler.engines.local.weights import Weights
from sightline_sampler.settings import EngineSettings, SamplerLimits


@dataclasses.dataclass(frozen=True)
class _Loaded:
    base: BaseModel
    builder: PromptBuilder
    prefiller: Prefiller
    weights: Weights
    teacher: Teacher


class TransformersEngine(Engine):
    """See the module.

    Args:
        settings: model, device, batching.
        limits: of images and candidates, for the capabilities and the decoder.
        on_step: called with the number of rows of each step.
    """

    name: ClassVar[str] = "transformers"

    def __init__(
        self, settings: EngineSettings, limits: SamplerLimits, *, on_step: Callable[[int], None] = lambda rows: None
    ) -> None:
        self._settings, self._limits, self._on_step = settings, limits, on_step
        self._pool = concurrent.futures.ThreadPoolExecutor(settings.preprocess_threads, thread_name_prefix="prepare")
        self._loader = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="load")
        self._loaded: _Loaded | None = None
        self._loop: DecodeLoop | None = None
        self._rest: Rest | None = None

    async def start(self) -> str:
        """Load the base model, check that this engine decodes it correctly, and start the decoding thread."""
        events = asyncio.get_running_loop()
        loaded = self._loaded = await events.run_in_executor(self._loader, self._load)
        self._loop = DecodeLoop(
            loaded.base,
            loaded.weights,
            loaded.prefiller,
            events=events,
            max_rows=self._settings.max_rows,
            cache_bytes=self._settings.cache_mib << 20
            or int(self._settings.cache_share * free_bytes(loaded.base.device)),
            on_step=self._on_step,
        )
        self._loop.start()

        def check() -> None:
            selfcheck.check(loaded.base, loaded.builder, loaded.prefiller)
            give_back(loaded.base.device)

        await asyncio.wrap_future(self._loop.call(check))
        return loaded.base.digest

    async def stop(self) -> None:
        """End running work with `Unavailable` and free everything."""
        if self._loop is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._loop.stop)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._loader.shutdown(wait=False, cancel_futures=True)
        self._loop = self._loaded = self._rest = None

    def ready(self) -> str | None:
        """None if it can sample, otherwise why not."""
        if self._loop is None:
            return "the model is being loaded"
        return self.broken()

    def broken(self) -> str | None:
        """Whether the decoding thread has died."""
        failure = None if self._loop is None else self._loop.failure()
        return None if failure is None else f"the decoding thread died: {failure}"

    def rows(self) -> int:
        """Candidates being decoded."""
        return self._loop.rows() if self._loop else 0

    def waiting(self) -> int:
        """Number of waiting prompts."""
        return self._loop.waiting() if self._loop else 0

    def capabilities(self) -> Capabilities:
        """The capabilities of this engine with this model."""
        base, limits = self._need()[0].base, self._limits
        return Capabilities(
            engine=self.label(),
            model=str(base.directory),
            logprobs="both",
            logprob_dtype=str(base.dtype).removeprefix("torch."),
            seeds=True,
            token_ids=True,
            lora="hot",
            full="hot",
            multi_version=True,
            prefix_shared=True,
            max_candidates=limits.max_candidates,
            max_tokens=min(limits.max_tokens, base.window),
            max_image_bytes=limits.max_image_bytes,
            max_image_pixels=limits.max_image_pixels,
            max_images=1 if base.processing.one_image_only else limits.max_images,
            max_turns=limits.max_turns,
            one_image_only=base.processing.one_image_only,
            native_k=True,
            scores=True,
            params=OPTIONS,
            keeps=True,
            adapter_place=base.adapter_place,
        )

    def loads(self) -> tuple[int, int]:
        """Running candidates and waiting prompts."""
        return self.rows(), self.waiting()

    async def freeze(self) -> None:
        """Stop decoding where it is, until `thaw`."""
        self._need()[1].freeze(True)

    async def thaw(self) -> None:
        """Go on."""
        self._need()[1].freeze(False)

    async def release(self) -> None:
        """Move the weights out of the way and free the caches."""
        loaded, loop = self._need()

        def rest() -> None:  # recorded here, since the caller may leave meanwhile
            loaded.teacher.forget()
            if self._rest is None:
                self._rest = Rest(loaded.base, loaded.weights, loaded.prefiller, loaded.builder)

        await asyncio.wrap_future(loop.call(rest))

    async def reload(self) -> None:
        """Bring the weights back, and check that they are the same."""
        _, loop = self._need()

        def end() -> None:
            if self._rest is not None:
                self._rest.end()
                self._rest = None

        await asyncio.wrap_future(loop.call(end))

    @classmethod
    def label(cls) -> str:
        """Name and version."""
        return f"{cls.name} {transformers.__version__}"

    async def sample(self, work: SampleWork) -> AsyncGenerator[Candidate | Summary]:
        """Yield each candidate when it is finished, and the summary last. Closing the iterator cancels the rest."""
        loaded, loop = self._need()
        params = work.params
        bare = await self._prepare(work.asked, params.distortion)
        self._known(params.continue_from, "continue_from")
        prepared = bare.continued(params.continue_from)
        limit = self._room(prepared, params.max_tokens)
        reference = await self._reference(work)
        if reference is not None:
            reference = reference.continued(params.continue_from)
            limit = min(limit, self._room(reference, params.max_tokens))
        request = Request(work, prepared, limit, asyncio.Queue(), reference)
        version, left = -1, len(work.seeds)
        try:
            loop.submit(request)
            while left:
                event = await request.events.get()
                if isinstance(event, BaseException):
                    raise event
                left, version = left - 1, event.policy_version
                yield self._with_text(loaded.base, request, event)
        finally:
            if left:
                loop.cancel(request)
        yield Summary(len(bare.ids), bare.rendered, version, self.label())

    async def score(self, work: ScoreWork) -> TokenScores:
        """Log-probability of each token of a given response under the policy."""
        loaded, loop = self._need()
        self._known(work.token_ids, "token_ids")
        prepared = await self._prepare(work.asked, work.distortion)
        self._room(prepared, len(work.token_ids))

        return await asyncio.wrap_future(loaded.teacher.score(loop.call, work.lease, prepared, work.token_ids))

    async def stage(self, directory: Path, manifest: PolicyManifest) -> StagedWeights:
        """Read the policy outside the decoding thread, and install it between two steps."""
        loaded, loop = self._need()
        read = await asyncio.get_running_loop().run_in_executor(self._loader, loaded.weights.read, directory, manifest)
        return await asyncio.wrap_future(loop.call(lambda: loaded.weights.install(manifest, read, directory)))

    async def activate(self, version: int) -> None:
        """Nothing to do: all loaded versions can answer side by side."""

    async def retire(self, version: int) -> None:
        """Free a staged version."""
        loaded, loop = self._need()

        def drop() -> None:
            loaded.teacher.forget()
            loaded.weights.drop(version)
            loaded.prefiller.features.forget(lambda key: key[1] == version)

        await asyncio.wrap_future(loop.call(drop))

    def _load(self) -> _Loaded:
        settings = self._settings
        transformers.utils.logging.disable_progress_bar()  # stderr is the log, one JSON object per line
        torch.set_num_threads(settings.threads or max(1, (os.cpu_count() or 2) - 1))
        base = load_base(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            chat_template=settings.chat_template,
            pixels=(settings.min_pixels, settings.max_pixels),
            quantization=settings.quantization,
            graphs=settings.gpu_graphs,
        )
        prefiller = Prefiller(base, ImageFeatures(settings.feature_cache_mib << 20))
        weights = Weights(base)
        return _Loaded(base, PromptBuilder(base), prefiller, weights, Teacher(base, prefiller, weights))

    def _need(self) -> tuple[_Loaded, DecodeLoop]:
        if self._loaded is None or self._loop is None:
            raise Unavailable("the sampler has not loaded its model yet", retry_after=1.0)
        return self._loaded, self._loop

    def _known(self, token_ids: Sequence[int], name: str) -> None:
        """Check that ids may be in a response. Raises InvalidInput."""
        base = self._need()[0].base
        for i, token in enumerate(token_ids):
            if token >= base.vocabulary or token in base.placeholders:
                why = "stands for an image" if token in base.placeholders else f"is not below {base.vocabulary}"
                raise InvalidInput(f"{name}[{i}] = {token} {why}", reason="BAD_TOKEN_ID")

    async def _prepare(self, asked: Conversation, distortion: Distortion | None = None) -> Prepared:
        builder = self._need()[0].builder

        def run() -> Prepared:
            builder.check(asked.turns)
            images = decoded(asked.images, self._limits)
            return builder.prepare(asked.turns, images, " ".join(image.digest for image in asked.images), distortion)

        return await asyncio.get_running_loop().run_in_executor(self._pool, run)

    async def _reference(self, work: SampleWork) -> Prepared | None:
        """The prompt of the reference rows: with other images, without images, or with another question."""
        guidance = work.params.guidance
        match guidance:
            case None:
                return None
            case ImageFree(_, None, _):
                return await self._prepare(work.asked.without_images())
            case Prompted(prompt, _):
                return await self._prepare(work.asked.asking(prompt), work.params.distortion)
        return await self._prepare(work.asked, guidance.distortion)

    def _room(self, prepared: Prepared, wanted: int | None) -> int:
        """Maximum tokens of a candidate: as requested, or as many as fit."""
        window, length = self._need()[0].base.window, len(prepared.ids)
        if length + (wanted or 1) > window:
            raise InvalidInput(
                f"the prompt has {length} tokens (image included) and {wanted or 1} more are requested; the model's "
                f"window is {window}",
                reason="PROMPT_TOO_LONG",
                metadata={"prompt_tokens": str(length), "window": str(window)},
            )
        return wanted or min(self._limits.default_max_tokens, window - length)

    @staticmethod
    def _with_text(base: BaseModel, request: Request, candidate: Candidate) -> Candidate:
        params = request.work.params
        given = list(params.continue_from)
        before = base.tokenizer.decode(given, skip_special_tokens=True) if given else ""
        text = base.tokenizer.decode([*given, *candidate.token_ids.tolist()], skip_special_tokens=True)
        if candidate.finish_reason == "stop":  # the given beginning contains none of the stop strings' ends
            same = len(before) if text.startswith(before) else 0
            text = text[:same] + cut(text[same:], params.stop)
        return dataclasses.replace(candidate, text=text)


def decoded(images: Sequence[EncodedImage], limits: SamplerLimits) -> list[Image.Image]:
    """The images of a request in RGB.

    Raises:
        InvalidInput: one is not an image or too large, or all together have too many pixels.
    """
    found: list[Image.Image] = []
    for image in images:
        found.append(decode(image.content, limits))
        pixels = sum(one.width * one.height for one in found)
        if len(images) > 1 and pixels > limits.max_images_pixels:
            raise InvalidInput(
                f"the images have more than {limits.max_images_pixels} pixels together, the limit",
                reason="IMAGES_TOO_MANY_PIXELS",
                metadata={"limit": str(limits.max_images_pixels)},
            )
    return found
