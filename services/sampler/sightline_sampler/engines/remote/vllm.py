"""vLLM's OpenAI-compatible server: K candidates in one request, adapters by name while it serves.

Facts about vLLM (0.33):

- `n` with a seed gives child i the seed + i. So seeds are consecutive numbers, and each candidate can be requested
again alone. Other seeds are sent in separate requests, which share prefix and image features in vLLM's caches.
- An adapter is addressed as `model`. Its name carries version and digest and is never used again, and every request's
  `cache_salt` says the same, so that no cached prefix of another version fits.
- Missing sampling parameters come from the checkpoint's generation config, so all are sent.
- Log-probs are the policy's (--logprobs-mode raw_logprobs, the default) or the behaviour's (processed_logprobs); which
one is determined at the start. Ids that must not be sampled (image placeholders, begin, pad) are excluded by a logit
bias, which does not affect raw log-probs.
- Merged and full policies replace the base weights through the development endpoints, between requests; adapters are
  then not served. `weight_versions` on a choice says which weights sampled it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from sightline.errors import InternalError, InvalidInput
from sightline.sampler.manifest import PolicyManifest
from sightline.sampler.params import SamplingParams
from sightline.sampler.types import Candidate, Capabilities, Summary, TokenScores

from sightline_sampler import metrics
from sightline_sampler.engine_settings import EngineSettings
from sightline_sampler.engines import seeds
from sightline_sampler.engines.base import SampleWork, ScoreWork, StagedWeights
from sightline_sampler.engines.remote.backend import Failure, reason_of, refused
from sightline_sampler.engines.remote.engine import RemoteEngine, left_of, too_long
from sightline_sampler.engines.remote.vllm_scores import VllmScorer
from sightline_sampler.engines.remote.vllm_sleep import VllmSleep
from sightline_sampler.engines.remote.vllm_stream import Choice
from sightline_sampler.engines.remote.vllm_weights import VllmWeights
from sightline_sampler.settings import SamplerLimits

_OPTIONS = frozenset({"top_k", "min_p", "repetition_penalty", "stop"})
_SEEDS = 1 << 63  # vLLM takes signed 64-bit seeds


class VllmEngine(RemoteEngine):
    """See the module."""

    name: ClassVar[str] = "vllm"

    def __init__(self, settings: EngineSettings, limits: SamplerLimits, called: str = "") -> None:
        super().__init__(settings, settings.vllm, limits, called)
        self._vllm = settings.vllm
        self._weights = VllmWeights(self._backend, settings.vllm, self._model, self.seen_at)
        self._scorer = VllmScorer(self._backend)
        self._sleep = VllmSleep(self._backend, self._weights)
        self._version = "?"
        self._raw = settings.vllm.logprobs != "processed"

    async def look(self) -> str | None:
        """Read health and models; reload what vLLM lost in a restart."""
        response = await self._backend.get("/health")
        if response.status_code != 200:
            raise Failure("away", f"/health answers {response.status_code}: {reason_of(response)}")
        return await self._weights.look()

    async def start(self) -> str:
        """Wait for vLLM, and find out what its log-probs are."""
        digest = await super().start()
        try:
            if self._vllm.sleep and await self._sleep.asleep():  # a killed sampler left it asleep
                await self._sleep.wake()
            response = await self._backend.get("/version")
            self._version = str(response.json().get("version", "?")) if response.status_code == 200 else "?"
            if self._vllm.logprobs == "auto":
                self._raw = await self._finds_raw()
        except Failure as failure:
            raise InternalError(f"vLLM does not generate: {failure}", reason="ENGINE_FAILED") from failure
        return digest

    def capabilities(self) -> Capabilities:
        """vLLM's capabilities, within this instance's limits."""
        limits = self._limits
        return Capabilities(
            engine=f"vllm {self._version}",
            model=self._weights.base_name,
            logprobs="policy" if self._raw else "behaviour",
            logprob_dtype="float32",  # type of the log-softmax; the logits have the model's type
            seeds=True,
            token_ids=True,
            lora="hot",
            full="hot" if self._vllm.dev_mode else "none",
            multi_version=True,
            prefix_shared=True,
            max_candidates=limits.max_candidates,
            max_tokens=min(limits.max_tokens, self._weights.window or limits.max_tokens),
            max_image_bytes=min(limits.max_image_bytes, max(0, self._vllm.max_body_bytes - (64 << 10)) * 3 // 4),
            max_image_pixels=limits.max_image_pixels,
            max_images=limits.max_images,
            max_turns=limits.max_turns,
            native_k=True,
            scores=True,
            params=_OPTIONS,
            adapter_place=self.place,
            keeps=self._vllm.dev_mode,
        )

    def derive_seeds(self, seed: int, count: int) -> list[int]:
        """Consecutive numbers, so that one request with `n` gives all candidates."""
        first = seeds.derive(seed, 1)[0] >> 1
        return [first + index for index in range(count)]

    @property
    def doubted(self) -> bool:
        """Whether it was restarted and got its adapters again, but has not proved them."""
        return self._weights.doubted

    def trust(self) -> None:
        """Allow its adapters in requests: for the proof, or after it."""
        self._weights.doubted = False

    def resident(self, version: int) -> bool:
        """Whether a request can name that version now."""
        return self._weights.resident(version)

    def batches(self, work: SampleWork) -> list[list[int]]:
        """One request for each group of consecutive seeds."""
        runs: list[list[int]] = []
        for index, seed in enumerate(work.seeds):
            if runs and seed == work.seeds[index - 1] + 1 and seed % _SEEDS:
                runs[-1].append(index)
            else:
                runs.append([index])
        return runs

    async def sample(self, work: SampleWork) -> AsyncGenerator[Candidate | Summary]:
        """Yield each candidate when it is finished, and the summary last."""
        params, version = work.params, work.lease.bind()
        rendered = self.text.render(work.asked.turns)
        special = self.text.wants_special(rendered)  # the chat route adds none itself, but the trainer has them
        messages = await self._messages(work)
        prompt_tokens, limit = 0, params.max_tokens or self._limits.default_max_tokens

        async def draw(indices: Sequence[int], chosen: Sequence[int]) -> AsyncGenerator[Candidate]:
            nonlocal prompt_tokens, limit
            # After resampling, the missing ones may not be consecutive: then each has its own request.
            for places, first in _runs(indices, chosen):
                body = self._body(messages, params, version, seed=first, n=len(places))
                body |= {"add_special_tokens": special, "max_tokens": limit}
                try:
                    stream = await self._opened(body, version)
                except InvalidInput as error:
                    limit = left_of(error, params)
                    stream = await self._opened(body | {"max_tokens": limit}, version)
                async for choice in stream:
                    prompt_tokens = choice.prompt_tokens or prompt_tokens
                    place = places[choice.index]
                    seed = chosen[list(indices).index(place)]
                    yield choice.candidate(place, seed, version, params, raw=self._raw, biased=self._raw)

        async with contextlib.aclosing(self.fetch(work, draw, version)) as candidates:
            async for candidate in candidates:
                yield candidate
        yield self.summary(version, rendered, prompt_tokens)

    async def score(self, work: ScoreWork) -> TokenScores:
        """Log-probabilities of a response, by prompt_logprobs over prompt and response together.

        Raises:
            InvalidInput: the tokenizer gives other ids for this text after this prompt.
        """
        version = work.lease.bind()
        self.require(version)
        self.text.check_ids(work.token_ids)
        messages = await self._messages(work)
        rendered = self.text.render(work.asked.turns)
        body = {
            "model": self._weights.name_of(version),
            "cache_salt": self._weights.salt_of(version),
            "add_special_tokens": self.text.wants_special(rendered),
        }
        try:
            logprobs = await self._scorer.score(messages, [int(token) for token in work.token_ids], body, self.text)
            if not await self._weights.still_holds(version):  # replies with scores do not name their weights
                metrics.STALE.inc()
                raise Failure("broken", "it was restarted, and scored with the base model's weights")
        except Failure as failure:
            raise self.unavailable(failure) from failure
        return TokenScores(logprobs, version)

    async def stage(self, directory: Path, manifest: PolicyManifest) -> StagedWeights:
        """Load an adapter beside the served ones; only compare a checkpoint, which is loaded at activation."""
        return await self._weights.stage(directory, manifest)

    async def activate(self, version: int) -> None:
        """Replace the base weights if the version needs others."""
        await self.until_up(self._vllm.swap_seconds)
        await self._weights.hold(version)

    async def retire(self, version: int) -> None:
        """Unload an adapter."""
        await self._weights.drop(version)

    async def freeze(self) -> None:
        """Stop sampling where it is, by /pause?mode=keep."""
        if not self._vllm.dev_mode:
            await super().freeze()
        await self._weights.control("/pause", query={"mode": "keep", "clear_cache": "false"})

    async def thaw(self) -> None:
        """Go on."""
        await self._weights.control("/resume")

    async def release(self) -> None:
        """Have vLLM sleep."""
        if not self._vllm.sleep:
            raise InvalidInput(
                "vLLM frees its memory only if it was started with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1, "
                "and engine.vllm.sleep says so",
                reason="PAUSE_MODE_UNSUPPORTED",
            )
        await self._sleep.begin()

    async def reload(self) -> None:
        """Wake vLLM up, and check that its weights came back."""
        await self._sleep.end()

    async def _messages(self, work: SampleWork | ScoreWork) -> list[dict[str, Any]]:
        self.text.check(work.asked.turns)
        urls = iter([await self.image_url(image) for image in work.asked.images])
        return [
            {
                "role": turn.role,
                "content": [
                    {"type": "image_url", "image_url": {"url": next(urls)}}
                    if part is None
                    else {"type": "text", "text": part}
                    for part in turn.content
                ],
            }
            for turn in work.asked.turns
        ]

    def _body(
        self, messages: list[dict[str, Any]], params: SamplingParams, version: int, *, seed: int, n: int
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._weights.name_of(version),
            "messages": messages,
            "n": n,
            "seed": seed % _SEEDS,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": params.min_p,
            "repetition_penalty": params.repetition_penalty,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop": list(params.stop),
            "logprobs": True,
            "top_logprobs": 0,
            "return_token_ids": True,
            "return_weight_versions": True,
            "cache_salt": self._weights.salt_of(version),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._raw:
            body["logit_bias"] = {str(token): -100.0 for token in sorted(self.text.never_ids)}
        return body

    async def _opened(self, body: dict[str, Any], version: int) -> AsyncIterator[Choice]:
        """The choices of a request that vLLM has accepted; the first has arrived."""
        choices = self._choices(body, version)
        first = await anext(choices)

        async def all_of_them() -> AsyncIterator[Choice]:
            yield first
            async for choice in choices:
                yield choice

        return all_of_them()

    async def _choices(self, body: dict[str, Any], version: int) -> AsyncIterator[Choice]:
        """Choices of a stream, each when it is finished.

        Raises:
            Failure: the stream broke or reported an error, or a part was not of the requested policy.
        """
        choices = {index: Choice(index) for index in range(body["n"])}
        async with self._backend.stream("/v1/chat/completions", body) as response:
            if response.status_code == 404:
                await self._weights.forget_served()
                raise Failure("away", f"vLLM does not know {body['model']}: {reason_of(response)}")
            if response.status_code != 200:
                raise self._refused(response)
            async for line in response.aiter_lines():
                if not line.startswith("data:") or line[5:].strip() == "[DONE]":
                    continue
                chunk = json.loads(line[5:])
                if "error" in chunk:
                    raise Failure("broken", str((chunk["error"] or {}).get("message", chunk["error"])))
                if chunk["model"] != body["model"]:
                    metrics.STALE.inc()
                    raise Failure("broken", f"vLLM answered as {chunk['model']}, not as {body['model']}")
                for part in chunk["choices"]:
                    choice = choices[part["index"]]
                    choice.add(part, chunk.get("prompt_token_ids"))
                    if not choice.finish:
                        continue
                    if choice.aborted or len(choice.token_ids) != len(choice.logprobs):
                        why = f"{len(choice.token_ids)} token ids, {len(choice.logprobs)} log-probs"
                        raise Failure("broken", f"vLLM ended a candidate with {choice.finish!r}: {why}")
                    if not self._weights.sampled_by(version, choice.spans):
                        metrics.STALE.inc()
                        raise Failure("broken", f"a candidate was sampled by other weights: {choice.spans}")
                    yield choices.pop(part["index"])
        if choices:
            raise Failure("broken", f"the stream ended with {len(choices)} candidates missing")

    def _refused(self, response: Any) -> Exception:
        why = reason_of(response)
        if response.status_code == 400 and ("context length" in why or "max_model_len" in why):
            found = re.search(r"contains (?:at least )?(\d+) input tokens", why)
            return too_long(why, window=self._weights.window, prompt=found[1] if found else None)
        return refused("vllm", response)

    async def _finds_raw(self) -> bool:
        """Whether log-probs are raw: with only the most likely token allowed, a processed one is 0."""
        params = SamplingParams(top_k=1, max_tokens=8)
        body = self._body([{"role": "user", "content": [{"type": "text", "text": "?"}]}], params, 0, seed=0, n=1)
        body |= {"model": self._weights.base_name, "ignore_eos": True}
        body.pop("logit_bias", None)
        async for choice in self._choices(body, 0):
            return any(logprob != 0 for logprob in choice.logprobs)
        raise InternalError("vLLM returned no candidate", reason="ENGINE_FAILED")


def _runs(indices: Sequence[int], chosen: Sequence[int]) -> list[tuple[list[int], int]]:
    runs: list[tuple[list[int], int]] = []
    for number, (index, seed) in enumerate(zip(indices, chosen, strict=True)):
        if runs and seed == chosen[number - 1] + 1 and seed % _SEEDS:
            runs[-1][0].append(index)
        else:
            runs.append(([index], seed))
    return runs
