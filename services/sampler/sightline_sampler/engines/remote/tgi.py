"""Text Generation Inference: K concurrent requests to /generate, and one set of weights at a time.

Facts about TGI (3.3.7, the last release; its repository is archived):

- /generate returns token ids, the chat route does not; `n` is ignored; `best_of` runs K requests inside the router,
saves only the upload, and refuses seeds. So each candidate is one request with its seed.
- Log-probs are computed after temperature and truncation, in the model's number type: they are the behaviour's, and the
policy's only if nothing processes the logits.
- The image is markdown in the prompt, and so is any `![](http://...)` in a user's text, which TGI would fetch.
- top_p of 1 and temperature of 0 are refused; /generate adds a begin token at the front; without max_new_tokens it
prefills again every 1024 tokens.
- An unknown adapter_id answers 200 from the base model, and on vision-language models a known one does too. So LoRA is
  never used: a policy is a merged checkpoint, TGI is restarted with it, and /info.model_id proves the version, before
  each request and again when its reply has arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import AsyncGenerator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
from sightline.errors import InternalError, InvalidInput, PreconditionFailed, Unsupported
from sightline.sampler.manifest import PolicyManifest, manifest_digest, policy_dirname
from sightline.sampler.params import SamplingParams
from sightline.sampler.turns import Turn
from sightline.sampler.types import Candidate, Capabilities, FinishReason, Summary, TokenScores

from sightline_sampler.engine_settings import EngineSettings
from sightline_sampler.engines.base import UNSCORABLE, Conversation, SampleWork, ScoreWork, StagedWeights
from sightline_sampler.engines.local.stops import cut
from sightline_sampler.engines.remote.backend import Failure, reason_of, refused
from sightline_sampler.engines.remote.engine import RemoteEngine, left_of, too_long
from sightline_sampler.engines.remote.merge import merge
from sightline_sampler.engines.remote.restart import restart
from sightline_sampler.engines.tensorfiles import check_adapter, check_checkpoint
from sightline_sampler.settings import SamplerLimits

_FINISH: dict[str, FinishReason] = {"eos_token": "eos", "stop_sequence": "stop", "length": "length"}
_MARKUP = "![]("
_OPTIONS = frozenset({"top_k", "repetition_penalty", "stop"})


class TgiEngine(RemoteEngine):
    """See the module."""

    name: ClassVar[str] = "tgi"

    def __init__(self, settings: EngineSettings, limits: SamplerLimits) -> None:
        super().__init__(settings, settings.tgi, limits)
        self._tgi = settings.tgi
        self._models = {0: settings.tgi.model_id or settings.model}
        self._merged: dict[int, Path] = {}
        self._info: dict[str, Any] = {}
        self._asked_info = 0.0  # time.monotonic() of the request for `_info`
        self._asking_info = asyncio.Lock()
        self._scores: bool | None = None
        self._coming: int | None = None  # the version of a requested restart, until it is up

    async def look(self) -> str | None:
        """Read /info and /health."""
        info = await self._ask_info()
        replica = int(info.get("max_concurrent_requests", self._tgi.max_concurrent))
        self.slots.limit = max(1, min(self._tgi.max_concurrent, replica))
        await self._backend.get("/health")
        if info.get("model_id") in self._models.values():
            return None
        return (
            f"it serves {info.get('model_id')!r}, which is neither the base model ({self._models[0]!r}, "
            "engine.tgi.model_id) nor a staged policy"
        )

    async def _ask_info(self) -> dict[str, Any]:
        began = time.monotonic()
        response = await self._backend.get("/info")
        if response.status_code != 200:
            raise Failure("away", f"/info answers {response.status_code}: {reason_of(response)}")
        self._info, self._asked_info = dict(response.json()), began
        return self._info

    async def _require_still(self, version: int) -> None:
        """As `require`, for replies that just arrived: TGI's replies do not name its model, so /info is read again,
        once for all replies that arrived meanwhile.

        Raises:
            Unavailable: it now holds another model, and may have held it while sampling.
            Failure: it does not answer.
        """
        came = time.monotonic()
        async with self._asking_info:
            if self._asked_info < came:
                await self._ask_info()
        if not self.resident(version):
            await self._look()
        self.require(version)

    async def start(self) -> str:
        """Wait for TGI, and find out whether it scores prompts."""
        digest = await super().start()
        body = {"inputs": "x", "parameters": {"max_new_tokens": 1, "details": True, "decoder_input_details": True}}
        try:
            response = await self._backend.post("/generate", body)
            self._scores = response.status_code == 200 and bool(response.json()["details"]["prefill"])
        except Failure as failure:
            raise InternalError(f"TGI does not generate: {failure}", reason="ENGINE_FAILED") from failure
        return digest

    def capabilities(self) -> Capabilities:
        """TGI's capabilities, within this instance's limits."""
        limits, info = self._limits, self._info
        return Capabilities(
            engine=f"tgi {info.get('version', '?')}",
            model=str(self._models[0]),
            logprobs="behaviour",
            logprob_dtype=str(info.get("model_dtype") or self.text.dtype).removeprefix("torch."),
            seeds=True,
            token_ids=True,
            lora="none" if self._tgi.merge_into is None else "restart",  # merged into a separate checkpoint
            full="restart",
            multi_version=False,
            prefix_shared=False,
            max_candidates=limits.max_candidates,
            max_tokens=min(limits.max_tokens, int(info.get("max_total_tokens", limits.max_tokens))),
            # The largest body's space for the image, after base64.
            max_image_bytes=min(limits.max_image_bytes, max(0, self._tgi.max_body_bytes - (64 << 10)) * 3 // 4),
            max_image_pixels=limits.max_image_pixels,
            max_images=limits.max_images,
            max_turns=limits.max_turns,
            native_k=False,
            scores=bool(self._scores),
            params=_OPTIONS,
            adapter_place=self.place,
        )

    def resident(self, version: int) -> bool:
        """Whether /info named that policy's checkpoint when it was last read."""
        return version in self._models and self._info.get("model_id") == self._models[version]

    async def sample(self, work: SampleWork) -> AsyncGenerator[Candidate | Summary]:
        """Yield each candidate when its request ends, and the summary last."""
        params = work.params
        self._check(params)
        version = work.lease.bind()
        rendered, inputs = await self._inputs(work.asked)
        prompt_tokens, limit = 0, params.max_tokens or self._limits.default_max_tokens

        async def draw(indices: Sequence[int], seeds: Sequence[int]) -> AsyncGenerator[Candidate]:
            nonlocal prompt_tokens, limit
            best = len(indices) if len(indices) > 1 else None
            body = {"inputs": inputs, "parameters": self._parameters(params, seeds[0], best, limit)}
            try:
                tree = self._read(response := await self._backend.post("/generate", body))
            except InvalidInput as error:
                limit = left_of(error, params)
                body["parameters"] = self._parameters(params, seeds[0], best, limit)
                tree = self._read(response := await self._backend.post("/generate", body))
            await self._require_still(version)
            prompt_tokens = int(response.headers.get("x-prompt-tokens", prompt_tokens))
            details = tree["details"]
            for index, one, seed in zip(
                indices, [{**details, **tree}, *(details.get("best_of_sequences") or [])], seeds, strict=True
            ):
                yield self._candidate(one, index, int(one.get("seed") or seed), params, version)

        async with contextlib.aclosing(self.fetch(work, draw, version)) as candidates:
            async for candidate in candidates:
                yield candidate
        yield self.summary(version, rendered, prompt_tokens)

    def batches(self, work: SampleWork) -> list[list[int]]:
        """One request for each candidate; with best_of, as many as the router accepts, if the upload dominates."""
        count, above = len(work.seeds), self._tgi.best_of_above_bytes
        most = min(int(self._info.get("max_best_of", 1)), self.slots.limit)
        sent = sum(len(image.content) for image in work.asked.images) * 4 // 3
        heavy = above is not None and sent > above
        if not (heavy and work.free_seeds and most > 1 and work.params.temperature):
            return super().batches(work)
        return [list(range(start, min(start + most, count))) for start in range(0, count, most)]

    def weight(self, count: int) -> int:
        """Each child of best_of takes a permit of the router."""
        return count

    async def score(self, work: ScoreWork) -> TokenScores:
        """Log-probabilities of a response, from the prefill of prompt and response together.

        Raises:
            Unsupported: TGI was started without --enable-prefill-logprobs.
            InvalidInput: the tokenizer gives other ids for this text, and TGI takes only text.
        """
        if not self._scores:
            raise Unsupported(
                "this TGI gives no log-probabilities of prompts: start it with --enable-prefill-logprobs",
                reason="SCORES_UNSUPPORTED",
            )
        version = work.lease.bind()
        self.require(version)
        ids = [int(token) for token in work.token_ids]
        self.text.check_ids(ids)
        rendered, inputs = await self._inputs(work.asked)
        text = self.text.continuation(rendered, ids)
        parameters = {"max_new_tokens": 1, "do_sample": False, "details": True, "decoder_input_details": True}
        try:
            tree = self._read(
                await self._backend.post("/generate", {"inputs": inputs + (text or ""), "parameters": parameters})
            )
            await self._require_still(version)
        except Failure as failure:
            raise self.unavailable(failure) from failure
        tail = tree["details"]["prefill"][-len(ids) :]
        if text is None or [token["id"] for token in tail] != ids:
            raise InvalidInput(
                "TGI takes text, and its tokenizer does not give these token ids for their text", reason=UNSCORABLE
            )
        logprobs = np.array([token["logprob"] for token in tail], dtype=np.float32)
        return TokenScores(logprobs, version)

    async def stage(self, directory: Path, manifest: PolicyManifest) -> StagedWeights:
        """Compare a checkpoint with the base model, or merge an adapter into one; TGI loads it when it is activated.

        Raises:
            PreconditionFailed: it does not fit, or it is an adapter and no directory for merging is configured.
        """
        if manifest.kind != "lora":
            staged = await asyncio.to_thread(check_checkpoint, directory, self._model)
            self._models[manifest.version] = self.seen_at(directory)
            return staged
        if self._tgi.merge_into is None:
            raise PreconditionFailed(
                "TGI ignores LoRA adapters on vision-language models and answers as the base model (with 200): "
                "publish the policy merged, or set engine.tgi.merge_into",
                reason="POLICY_KIND_UNSUPPORTED",
            )
        staged = await asyncio.to_thread(check_adapter, directory, self._model, most_rank=1 << 20, tower=True)
        digest = await asyncio.to_thread(manifest_digest, directory)
        merged = self._tgi.merge_into / f"{policy_dirname(manifest.version)}-{digest[:12]}"
        await asyncio.to_thread(merge, directory, self._model, merged)
        self._models[manifest.version], self._merged[manifest.version] = self.seen_at(merged), merged
        return staged

    async def activate(self, version: int) -> None:
        """Restart TGI with the policy's checkpoint, and wait until /info names it.

        Raises:
            PreconditionFailed: no way to restart it is configured, or it does not start with that model in time.
        """
        await self.until_up(self._tgi.swap_seconds)
        if self.resident(version) and self._coming in (None, version):
            return
        model = self._models[version]
        if self._tgi.restart_command or self._tgi.kubernetes:
            self._coming = version  # until it is up, any answering server may be about to stop
        await restart(self._tgi, model=model, version=version)
        await self.until(lambda: self.resident(version), f"TGI did not start with {model}")
        self._coming = None

    async def retire(self, version: int) -> None:
        """Remove its entry, and delete a checkpoint that was merged here."""
        self._models.pop(version, None)
        if (merged := self._merged.pop(version, None)) is not None:
            await asyncio.to_thread(shutil.rmtree, merged, ignore_errors=True)

    async def _inputs(self, asked: Conversation) -> tuple[str, str]:
        """The rendered prompt, and its form for TGI: images as markdown, without a leading begin token.

        Markdown for images in the user's text is broken by a space, so that TGI does not treat it as an image.
        """
        turns = [
            Turn(turn.role, tuple(part and part.replace(_MARKUP, "! [](") for part in turn.content))
            for turn in asked.turns
        ]
        rendered = self.text.render(turns)
        if re.search(re.escape(_MARKUP), rendered):
            raise InvalidInput(
                "prompt and chat template together spell an image for TGI: change the prompt",
                reason="PROMPT_HAS_PLACEHOLDER",
            )
        if not asked.images:
            return rendered, self.text.without_bos(rendered)
        before, *after = self.text.around_images(rendered, len(asked.images))
        shown = [f"![]({await self.image_url(image)})" for image in asked.images]
        return rendered, "".join([self.text.without_bos(before), *chain.from_iterable(zip(shown, after, strict=True))])

    def _check(self, params: SamplingParams) -> None:
        most = int(self._info.get("max_stop_sequences", 4))
        if len(params.stop) > most:
            raise InvalidInput(
                f"{len(params.stop)} stop strings; this TGI takes {most}", reason="PARAMETER_UNSUPPORTED"
            )

    @staticmethod
    def _parameters(params: SamplingParams, seed: int, best_of: int | None, limit: int) -> dict[str, Any]:
        tree: dict[str, Any] = {
            "details": True,
            "do_sample": params.temperature != 0,
            "max_new_tokens": limit,
            "return_full_text": False,
        }
        if params.stop:
            tree["stop"] = list(params.stop)
        if params.repetition_penalty != 1:
            tree["repetition_penalty"] = params.repetition_penalty
        if params.temperature == 0:
            return tree
        if params.temperature != 1:
            tree["temperature"] = params.temperature
        if params.top_p != 1:
            tree["top_p"] = params.top_p
        if params.top_k:
            tree["top_k"] = params.top_k
        tree |= {"seed": seed} if best_of is None else {"best_of": best_of}
        return tree

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code == 200:
            tree = response.json()
            if not isinstance(tree, dict) or not tree.get("details"):
                raise InternalError("TGI answered without details", reason="ENGINE_FAILED")
            return tree
        why = reason_of(response)
        if response.status_code == 422 and "tokens" in why and ("inputs" in why or "max_new_tokens" in why):
            found = re.search(r"(\d+) `inputs` tokens", why)
            raise too_long(why, window=self._info.get("max_total_tokens"), prompt=found[1] if found else None)
        raise refused("tgi", response)

    def _candidate(
        self, tree: dict[str, Any], index: int, seed: int, params: SamplingParams, version: int
    ) -> Candidate:
        tokens = tree["tokens"]
        logprobs = np.array([token["logprob"] for token in tokens], dtype=np.float32)
        greedy = params.temperature == 0
        processed = params.repetition_penalty != 1 or (not greedy and (params.temperature != 1 or params.top_p != 1))
        processed = processed or (not greedy and params.top_k != 0)
        return Candidate(
            index=index,
            text=cut(tree["generated_text"], params.stop),
            token_ids=np.array([token["id"] for token in tokens], dtype=np.int64),
            logprobs=np.zeros(0, dtype=np.float32) if processed else logprobs,
            behaviour_logprobs=np.zeros_like(logprobs) if greedy else logprobs,
            finish_reason=_FINISH[tree["finish_reason"]],
            seed=seed,
            policy_version=version,
        )
