"""Streams of candidates, sync and async; and the options of a sample call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypedDict, Unpack

from sightline.convert import from_message
from sightline.errors import InternalError, SightlineError, typed_errors
from sightline.patience import Tries
from sightline.sampler import wire
from sightline.sampler.turns import Asked, Images
from sightline.sampler.types import Beams, Candidate, Distortion, Exact, Guidance, PolicySelector, Samples, Summary
from sightline.sampler.v1 import sampler_pb2 as pb


class SampleOptions(TypedDict, total=False):
    """Keyword arguments of `sample` and `stream`; all are optional.

    Attributes:
        seeds: one for each candidate; otherwise candidate i gets a seed derived from `seed` and i.
        seed: the seed from which missing seeds are derived; default 0.
        temperature: softmax temperature; 0 is greedy; default 1.
        top_p: nucleus in (0, 1]; default 1 (all).
        top_k: keep the k most likely tokens; default 0 (all).
        max_tokens: maximum tokens of a candidate, the end token included; None (default) means the service's default.
        min_p: keep tokens with at least this share of the most likely token's probability; default 0 (all).
        repetition_penalty: for tokens of the prompt and candidate; default 1 (none).
        stop: a candidate ends before any of these strings; default none.
        beams: `Beams`: diverse group beam search instead of sampling; default None.
        distortion: `DiffusionNoise`, `PixelNoise`, `Blur`, `Crop` or `Blank`: how the image is distorted; default None.
        guidance: `Contrast`, `ImageFree` or `Prompted`: a second forward pass that changes the logits; default None.
        continue_from: token ids that the response begins with; candidates continue after them. Their text is the whole
            response; their ids and log-probs are those of the new tokens; default none.
        policy: `exact(v)`, `at_least(v)`, `active_of(run)`, or None (default) for the active one.
        request_id: unique for each piece of work; made if None (default).
        timeout: deadline in seconds; None (default) means the client's.
    """

    seeds: Sequence[int] | None
    seed: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int | None
    min_p: float
    repetition_penalty: float
    stop: Sequence[str]
    beams: Beams | None
    distortion: Distortion | None
    guidance: Guidance | None
    continue_from: Sequence[int]
    policy: PolicySelector | None
    request_id: str | None
    timeout: float | None


def sample_request(
    image: Images, prompt: Asked, n: int, call_id: str, run_id: str, **options: Unpack[SampleOptions]
) -> pb.SampleRequest:
    """The request of a call, with the defaults of its options; `run_id` is the client's."""
    if unknown := set(options) - set(SampleOptions.__annotations__):
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    return wire.sample_request(
        image,
        prompt,
        n,
        seeds=options.get("seeds"),
        seed=options.get("seed", 0),
        temperature=options.get("temperature", 1.0),
        top_p=options.get("top_p", 1.0),
        top_k=options.get("top_k", 0),
        max_tokens=options.get("max_tokens"),
        min_p=options.get("min_p", 0.0),
        repetition_penalty=options.get("repetition_penalty", 1.0),
        stop=options.get("stop", ()),
        beams=options.get("beams"),
        distortion=options.get("distortion"),
        guidance=options.get("guidance"),
        continue_from=tuple(wire.token_list(options.get("continue_from", ()))),
        policy=wire.selector_message(options.get("policy"), run_id),
        request_id=call_id,
    )


class _Stream:
    """The state of a request over all its calls.

    Args:
        start: makes a call of a request with a deadline in seconds.
        request: the first request; a call that breaks is followed by one for the missing candidates.
        tries: how often, and how long.
    """

    def __init__(
        self, start: Callable[[pb.SampleRequest, float], Any], request: pb.SampleRequest, tries: Tries
    ) -> None:
        self._start, self._request, self._tries = start, request, tries
        self._missing = set(range(request.num_candidates))
        self._policy: Exact | None = None
        self._closed = threading.Event()
        self.request_id = request.request_id
        self.summary: Summary | None = None
        self._call = start(request, tries.left())

    def close(self) -> None:
        """Cancel unfinished calls."""
        self._closed.set()
        self._call.cancel()

    def _take(self, response: pb.SampleResponse) -> Iterator[Candidate]:
        self._tries.progressed()
        if response.WhichOneof("event") == "summary":
            self.summary = from_message(response.summary, Summary)
            return
        candidate = wire.candidate_of(response.candidate)
        if candidate.index in self._missing:  # otherwise the previous call delivered it
            self._missing.remove(candidate.index)
            self._policy = Exact(candidate.policy_version, candidate.run_id)
            yield candidate

    def _wait(self, error: SightlineError) -> float:
        """Seconds until the next call; raises the error if there is none."""
        if self._closed.is_set():
            raise error
        return self._tries.wait_after(error)

    def _again(self, error: SightlineError) -> None:
        """Request the missing candidates of the same version; raises the error if the stream was closed
        meanwhile."""
        if self._closed.is_set():
            raise error
        request = pb.SampleRequest()
        request.CopyFrom(self._request)
        request.indices[:] = sorted(self._missing) or [0]  # all arrived, only the summary is missing
        if (selector := wire.selector_message(self._policy)) is not None:
            request.policy.CopyFrom(selector)
        self._call = self._start(request, self._tries.left())
        if self._closed.is_set():  # by another thread, just now
            self._call.cancel()

    def samples(self, candidates: list[Candidate]) -> Samples:
        """All candidates, in index order.

        Raises:
            InternalError: some are missing or came twice.
        """
        summary, count = self.summary, self._request.num_candidates
        if summary is None or sorted(c.index for c in candidates) != list(range(count)):
            raise InternalError(
                f"the server ended request {self.request_id} with {len(candidates)} of {count} candidates"
            )
        return Samples(
            candidates=tuple(sorted(candidates, key=lambda c: c.index)),
            prompt_tokens=summary.prompt_tokens,
            rendered_prompt=summary.rendered_prompt,
            policy_version=summary.policy_version,
            run_id=summary.run_id,
            engine=summary.engine,
            seconds=summary.seconds,
            request_id=self.request_id,
        )


class SampleStream(_Stream):
    """Yields candidates when they are finished, in any order, each once; `summary` is set after the last one.

    If the service is unavailable or full, even in mid-stream, the missing candidates are requested again. Leaving its
    `with` block, or `close()` (from any thread), cancels unfinished candidates.
    """

    def __iter__(self) -> Iterator[Candidate]:
        while True:
            try:
                with typed_errors():
                    for response in self._call:
                        yield from self._take(response)
                return
            except SightlineError as error:
                self._closed.wait(self._wait(error))
                self._again(error)

    def __enter__(self) -> SampleStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncSampleStream(_Stream):
    """As `SampleStream`, for `async for`."""

    async def __aiter__(self) -> AsyncIterator[Candidate]:
        while True:
            try:
                with typed_errors():
                    async for response in self._call:
                        for candidate in self._take(response):
                            yield candidate
                return
            except SightlineError as error:
                await asyncio.sleep(self._wait(error))
                self._again(error)

    async def __aenter__(self) -> AsyncSampleStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
