"""A server with TGI 3.3.7's protocol: fields, error shapes, limits, and silent behaviour.

From its openapi.json, router (validation.rs, server.rs, infer/mod.rs) and Python server, as read. Behind it a real
small LLaVA answers. As a program, to be killed and started again: `python tgi_server.py PORT MODEL_ID BASE [VLM_LORA]`.
"""

import asyncio
import re
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from engine_mind import Draw, Mind, data_url
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

PAYLOAD_LIMIT = 2_000_000
_IMAGE = re.compile(r"!\[\]\([^\)]*\)")


class Refusal(Exception):
    """An error reply."""

    def __init__(self, status: int, error: str, kind: str) -> None:
        super().__init__(error)
        self.status, self.error, self.kind = status, error, kind


class TgiServer:
    """One replica.

    Args:
        mind: answers.
        model_id: as --model-id.
        max_best_of: as --max-best-of.
        max_concurrent_requests: as that flag.
        prefill_logprobs: as --enable-prefill-logprobs.

    What tests set:
        fail: statuses of the next replies of /generate (424, 429, 500, 503, or 0: the connection breaks).
        seconds: of each request, to be slow.
        stale: after a restart it names the new model and holds the old weights.
        starting_until: `time.monotonic()` until which it is away after a restart.
    """

    def __init__(
        self,
        mind: Mind,
        model_id: str,
        *,
        max_best_of: int = 2,
        max_concurrent_requests: int = 128,
        prefill_logprobs: bool = True,
    ) -> None:
        self.mind, self.model_id, self.model = mind, model_id, mind.base
        self.max_best_of, self.permits = max_best_of, max_concurrent_requests
        self.max_concurrent_requests, self.prefill_logprobs = max_concurrent_requests, prefill_logprobs
        self.fail: deque[int] = deque()
        self.seconds = 0.0
        self.stale = False
        self.starting_until = 0.0
        self.requests: list[dict[str, Any]] = []  # bodies of /generate
        self.fetched: list[str] = []  # URLs that a caller made it fetch
        self.double_bos = 0
        self.most_at_once = 0
        self.app = Starlette(
            routes=[
                Route("/info", self.info),
                Route("/health", self.health),
                Route("/generate", self.generate, methods=["POST"]),
                Route("/", self.compat, methods=["POST"]),
                Route("/test/restart", self.restart, methods=["POST"]),
            ]
        )

    async def info(self, request: Request) -> Response:
        """GET /info."""
        if self._starting:
            return self._starting_reply()
        return JSONResponse(
            {
                "model_id": self.model_id,
                "model_sha": None,
                "model_pipeline_tag": None,
                "max_concurrent_requests": self.max_concurrent_requests,
                "max_best_of": self.max_best_of,
                "max_stop_sequences": 4,
                "max_input_tokens": self.mind.window - 1,
                "max_total_tokens": self.mind.window,
                "validation_workers": 2,
                "max_client_batch_size": 4,
                "router": "text-generation-router",
                "version": "3.3.6-dev0",
                "sha": None,
                "docker_label": None,
            }
        )

    async def health(self, request: Request) -> Response:
        """GET /health."""
        return self._starting_reply() if self._starting else Response()

    async def restart(self, request: Request) -> Response:
        """Not part of TGI: act as an orchestrator; be away for a moment, then serve another --model-id."""
        model_id = request.query_params["model_id"]
        self.starting_until = time.monotonic() + float(request.query_params.get("seconds", "0.2"))
        if not self.stale:
            path = Path(model_id)
            self.model = (
                self.mind.base if path == self.mind.directory else await run_in_threadpool(self.mind.load, path)
            )
        self.model_id = model_id
        return Response()

    async def compat(self, request: Request) -> Response:
        """POST /: as /generate, in a list."""
        reply = await self.generate(request)
        if reply.status_code == 200:
            return Response(b"[" + bytes(reply.body) + b"]", media_type="application/json")
        return reply

    async def generate(self, request: Request) -> Response:
        """POST /generate."""
        if self._starting:
            return self._starting_reply()
        raw = await request.body()
        if len(raw) > PAYLOAD_LIMIT:  # axum's own reply: plain text
            return PlainTextResponse("Failed to buffer the request body: length limit exceeded", 413)
        body = await request.json()
        self.requests.append(body)
        try:
            if self.fail:
                _raise(self.fail.popleft())
            parameters = self._validated(body.get("parameters") or {})
            best_of = parameters["best_of"]
            if self.permits < best_of:  # one permit for each child, none waits
                raise Refusal(429, "Model is overloaded", "overloaded")
            self.permits -= best_of
            self.most_at_once = max(self.most_at_once, self.max_concurrent_requests - self.permits)
            try:
                await asyncio.sleep(self.seconds)
                tree, prompt_tokens = await run_in_threadpool(self._answer, body["inputs"], parameters)
            finally:
                self.permits += best_of
        except Refusal as refusal:
            return JSONResponse({"error": refusal.error, "error_type": refusal.kind}, refusal.status)
        headers = {"x-compute-type": "cpu", "x-prompt-tokens": str(prompt_tokens), "x-compute-characters": "0"}
        return JSONResponse(tree, headers=headers)

    @property
    def _starting(self) -> bool:
        return time.monotonic() < self.starting_until

    @staticmethod
    def _starting_reply() -> Response:
        return JSONResponse({"error": "unhealthy", "error_type": "healthcheck"}, 503)

    def _validated(self, given: dict[str, Any]) -> dict[str, Any]:
        def refuse(text: str) -> None:
            raise Refusal(422, f"Input validation error: {text}", "validation")

        best_of = given.get("best_of") or 1
        sampling = bool(given.get("do_sample")) or any(
            given.get(name) is not None for name in ("temperature", "top_k", "top_p", "typical_p")
        )
        if best_of > self.max_best_of:
            refuse(f"`best_of` must be > 0 and <= {self.max_best_of}. Given: {best_of}")
        if best_of > 1 and not sampling:
            refuse("you must use sampling when `best_of` is > 1")
        if best_of > 1 and given.get("seed") is not None:
            refuse("`seed` must not be set when `best_of` > 1")
        if given.get("temperature") is not None and not given["temperature"] > 0:
            refuse("`temperature` must be strictly positive")
        if given.get("top_p") is not None and not 0 < given["top_p"] < 1:
            refuse("`top_p` must be > 0.0 and < 1.0")
        if given.get("top_k") is not None and not given["top_k"] > 0:
            refuse("`top_k` must be strictly positive")
        if given.get("repetition_penalty") is not None and not given["repetition_penalty"] > 0:
            refuse("`repetition_penalty` must be strictly positive")
        if len(given.get("stop") or []) > 4:
            refuse(f"`stop` supports up to 4 stop sequences. Given: {len(given['stop'])}")
        if given.get("max_new_tokens") is not None and not given["max_new_tokens"] > 0:
            refuse("`max_new_tokens` must be strictly positive")
        # An unknown adapter_id is ignored: the base model answers with 200.
        return {**given, "best_of": best_of, "sampling": sampling}

    def _answer(self, inputs: str, parameters: dict[str, Any]) -> tuple[dict[str, Any], int]:
        images: list[bytes] = []
        for mark in _IMAGE.findall(inputs):
            url = mark[4:-1]
            if url.startswith("http"):
                self.fetched.append(url)
                raise Refusal(422, f"Input validation error: Could not fetch image: {url}", "validation")
            try:
                images.append(data_url(url))
            except ValueError as error:
                raise Refusal(422, f"Input validation error: invalid image: {error}", "validation") from error
        text = _IMAGE.sub("<image>", inputs)
        if text.startswith("<s>"):
            self.double_bos += 1
        prompt = self.mind.prepare(text, images, special=True)  # always adds special tokens
        length = prompt["input_ids"].shape[1]
        limit = parameters.get("max_new_tokens") or self.mind.window - length
        if length + limit > self.mind.window:
            raise Refusal(
                422,
                f"Input validation error: `inputs` tokens + `max_new_tokens` must be <= {self.mind.window}. Given: "
                f"{length} `inputs` tokens and {limit} `max_new_tokens`",
                "validation",
            )
        best_of = parameters["best_of"]
        seeds = [parameters.get("seed")] * best_of
        if parameters["sampling"]:
            seeds = [int(np.random.default_rng().integers(1 << 63)) if seed is None else seed for seed in seeds]
        drawn = [self._sequence(self._draw(prompt, parameters, seed, limit), seed, parameters) for seed in seeds]
        drawn.sort(key=lambda one: -np.mean([token["logprob"] for token in one["tokens"]]))  # the best one first
        best = drawn[0]
        text = best.pop("generated_text")
        if parameters.get("decoder_input_details") and self.prefill_logprobs:
            ids = prompt["input_ids"][0].tolist()
            best["prefill"] = [
                {"id": token, "text": self.mind.tokenizer.decode([token]), "logprob": None if lp is None else _half(lp)}
                for token, lp in zip(ids, self.mind.scores(self.model, prompt), strict=True)
            ]
        reply: dict[str, Any] = {"generated_text": text}
        if parameters.get("details"):
            reply["details"] = {**best, "best_of_sequences": drawn[1:] or None}
        return reply, length

    def _draw(self, prompt: dict[str, Any], parameters: dict[str, Any], seed: int | None, limit: int) -> Draw:
        how = {name: parameters.get(name) for name in ("top_k", "top_p", "repetition_penalty")}
        temperature = parameters.get("temperature") or 1.0 if parameters["sampling"] else 0.0
        stop = parameters.get("stop") or []
        return self.mind.draw(
            self.model, prompt, seed=seed or 0, limit=limit, stop=stop, temperature=temperature, **how
        )

    def _sequence(self, drawn: Draw, seed: int | None, parameters: dict[str, Any]) -> dict[str, Any]:
        finish = {"eos": "eos_token", "stop": "stop_sequence", "length": "length"}[drawn.finish]
        tokens = [
            {"id": token, "text": self.mind.tokenizer.decode([token]), "logprob": _half(lp), "special": token < 5}
            for token, lp in zip(drawn.ids, drawn.processed, strict=True)
        ]
        return {
            "generated_text": drawn.text,
            "finish_reason": finish,
            "generated_tokens": len(tokens),
            "seed": seed if parameters["sampling"] else None,
            "prefill": [],
            "tokens": tokens,
            "top_tokens": [],
        }


def _half(logprob: float) -> float:
    return float(np.float16(logprob))  # computed in the model's number type


def _raise(status: int) -> None:
    match status:
        case 424:
            raise Refusal(424, "Request failed during generation: CUDA out of memory", "generation")
        case 429:
            raise Refusal(429, "Model is overloaded", "overloaded")
        case 500:
            raise Refusal(500, "Incomplete generation", "incomplete_generation")
        case 503:
            raise Refusal(503, "unhealthy", "healthcheck")
        case _:
            raise ConnectionResetError  # uvicorn answers 500 in plain text


if __name__ == "__main__":
    import uvicorn
    from engine_server import free_socket

    port, model_id, base = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    mind = Mind(base)
    server = TgiServer(mind, model_id)
    if Path(model_id) != base:
        server.model = mind.load(Path(model_id))
    server.seconds = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
    uvicorn.Server(uvicorn.Config(server.app, log_level="error", lifespan="off")).run(sockets=[free_socket(port)])
