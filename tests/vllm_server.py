"""A server with vLLM 0.33's protocol: the chat route, adapters at run time, development endpoints, and its traps.

From its protocol classes and routers, as read. Behind it a real small LLaVA answers. As a program, to be killed and
started again: `python vllm_server.py PORT BASE [SECONDS]`.
"""

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from engine_mind import Draw, Mind, data_url
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

KNOWN = {
    "messages", "model", "n", "seed", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "stop", "logprobs", "top_logprobs", "return_token_ids",
    "return_weight_versions", "cache_salt", "stream", "stream_options", "logit_bias", "ignore_eos",
    "add_generation_prompt", "continue_final_message", "prompt_logprobs", "add_special_tokens",
}  # fmt: skip


class VllmServer:
    """One replica.

    Args:
        mind: answers.
        name: as --served-model-name.
        logprobs_mode: as that flag.
        dev_mode: as VLLM_SERVER_DEV_MODE=1.

    What tests set:
        fail: what becomes of the next chat requests: a status, or "break" (the stream ends after its first choice).
        seconds: of each request, to be slow.
        inert: adapters are loaded and no module of them is active, as with keys of another prefix.
        unnamed: whatever is named, the base model answers.
        forgetful: it wakes up with the weights of its disk, adapters without theirs.
        stale_prefix: prefixes are found by prompt alone: not by adapter, path or salt.
        other_path: where adapters are really read from.
        base: the base weights, in place of those that it was started with.
    """

    def __init__(
        self, mind: Mind, name: str = "llava", *, logprobs_mode: str = "raw_logprobs", dev_mode: bool = False
    ) -> None:
        self.mind, self.name, self.mode, self.dev_mode = mind, name, logprobs_mode, dev_mode
        self.base: Any = mind.base
        self.loras: dict[str, tuple[str, Any]] = {}
        self.label: str | None = None
        self.paused = self.frozen = False
        self.running = 0
        self.prefixes: dict[tuple[Any, ...], Any] = {}
        self.fail: deque[int | str] = deque()
        self.seconds = 0.0
        self.inert = self.unnamed = self.stale_prefix = self.forgetful = self.asleep = False
        self.other_path: Path | None = None
        self.requests: list[dict[str, Any]] = []
        self.calls: list[str] = []  # of control endpoints
        control = {
            "/v1/load_lora_adapter": self.load_lora_adapter,
            "/v1/unload_lora_adapter": self.unload_lora_adapter,
        }
        if dev_mode:
            control |= {
                f"/{name}": getattr(self, name)
                for name in (
                    "pause", "resume", "collective_rpc", "update_weight_version", "reset_prefix_cache",
                    "reset_mm_cache", "reset_encoder_cache", "sleep", "wake_up",
                )
            }  # fmt: skip
        routes = [Route(path, self._noted(path, call), methods=["POST"]) for path, call in control.items()]
        if dev_mode:
            routes.append(Route("/weight_info", self.weight_info))
            routes.append(Route("/is_sleeping", lambda request: JSONResponse({"is_sleeping": self.asleep})))
        self.app = Starlette(
            routes=[
                Route("/health", lambda request: Response()),
                Route("/version", lambda request: JSONResponse({"version": "0.33.0"})),
                Route("/v1/models", self.models),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                *routes,
            ]
        )

    def _noted(self, path: str, call: Any) -> Any:
        async def noted(request: Request) -> Response:
            self.calls.append(path + (f"?{request.url.query}" if request.url.query else ""))
            reply: Response = await call(request)
            return reply

        return noted

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        base = {"id": self.name, "object": "model", "root": str(self.mind.directory), "parent": None}
        cards = [{**base, "max_model_len": self.mind.window}]
        cards += [{"id": n, "object": "model", "root": p, "parent": self.name} for n, (p, _) in self.loras.items()]
        return JSONResponse({"object": "list", "data": cards})

    async def load_lora_adapter(self, request: Request) -> Response:
        """POST /v1/load_lora_adapter."""
        body = await request.json()
        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            return _error(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
        if name in self.loras and not body.get("load_inplace"):
            return _error(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        if not (Path(path) / "adapter_config.json").exists():
            return _error(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        real = self.other_path or Path(path)
        model = self.mind.base if self.inert else await run_in_threadpool(self.mind.load, real)
        self.loras[name] = (path, model)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload_lora_adapter(self, request: Request) -> Response:
        """POST /v1/unload_lora_adapter."""
        name = (await request.json()).get("lora_name")
        if name not in self.loras:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.loras[name]
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def pause(self, request: Request) -> Response:
        """POST /pause?mode=abort|wait|keep."""
        mode = request.query_params.get("mode", "abort")
        self.frozen, self.paused = mode == "keep", mode != "keep"
        while mode == "wait" and self.running:
            await asyncio.sleep(0.01)
        return JSONResponse({"status": "paused"})

    async def resume(self, request: Request) -> Response:
        """POST /resume."""
        self.paused = self.frozen = False
        return JSONResponse({"status": "resumed"})

    async def collective_rpc(self, request: Request) -> Response:
        """POST /collective_rpc: reload_weights. Labels and caches stay as they are."""
        body = await request.json()
        path = Path(body["kwargs"]["weights_path"])
        self.base = self.mind.base if path == self.mind.directory else await run_in_threadpool(self.mind.load, path)
        return JSONResponse({"results": [None]})

    async def update_weight_version(self, request: Request) -> Response:
        """POST /update_weight_version."""
        self.label = (await request.json())["new_version"]
        return JSONResponse({"success": True, "new_version": self.label})

    async def weight_info(self, request: Request) -> Response:
        """GET /weight_info."""
        return JSONResponse({"weight_version": self.label})

    async def reset_prefix_cache(self, request: Request) -> Response:
        """POST /reset_prefix_cache: not while blocks are held."""
        if self.running:
            return JSONResponse({"success": False})
        self.prefixes.clear()
        return JSONResponse({"success": True})

    async def sleep(self, request: Request) -> Response:
        """POST /sleep?level=1|2&mode=abort|wait|keep: keys and values are dropped."""
        assert request.query_params.get("level", "1") == "1"
        while self.running:
            await asyncio.sleep(0.01)
        self.asleep = True
        self.prefixes.clear()
        return Response()

    async def wake_up(self, request: Request) -> Response:
        """POST /wake_up."""
        if self.asleep and self.forgetful:
            self.base = self.mind.base
            self.loras = {name: (path, self.mind.base) for name, (path, _) in self.loras.items()}
        self.asleep = False
        return Response()

    async def reset_mm_cache(self, request: Request) -> Response:
        """POST /reset_mm_cache."""
        return Response()

    async def reset_encoder_cache(self, request: Request) -> Response:
        """POST /reset_encoder_cache."""
        return Response()

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await request.json()
        self.requests.append(body)
        what = self.fail.popleft() if self.fail else None
        if isinstance(what, int):
            return _error(what, "EngineCore encountered an issue.", "InternalServerError")
        if self.asleep:  # the real one reads out of bounds
            return _error(500, "EngineCore encountered an issue.", "InternalServerError")
        if self.paused:
            return _error(503, "The server is paused.", "ServiceUnavailableError")
        self.running += 1  # from here on a waiting pause waits for it
        reply: Response | None = None
        try:
            reply = await self._chat(body, what)
            return reply
        finally:
            if not isinstance(reply, StreamingResponse):
                self.running -= 1

    async def _chat(self, body: dict[str, Any], what: Any) -> Response:
        assert body.keys() <= KNOWN, body.keys() - KNOWN
        name = body.get("model") or self.name
        if name != self.name and name not in self.loras:
            return _error(404, f"The model `{name}` does not exist.", "NotFoundError", "model")
        n, temperature = body.get("n") or 1, _given(body, "temperature", 0.2)  # the generation config's
        if n > 1 and temperature == 0:
            return _error(400, f"n must be 1 when using greedy sampling, got {n}.", "BadRequestError")
        if not -(1 << 63) <= (body.get("seed") or 0) < 1 << 63:
            return _error(400, "seed: Input should be less than or equal to 9223372036854775807", "BadRequestError")
        prompt, ids = await run_in_threadpool(self._prompt, body)
        limit = body.get("max_tokens") or self.mind.window - len(ids)
        if len(ids) + limit > self.mind.window:
            return _error(
                400,
                f"This model's maximum context length is {self.mind.window} tokens. However, you requested {limit} "
                f"output tokens and your prompt contains {len(ids)} input tokens.",
                "BadRequestError",
            )
        model = self.base if name == self.name or self.unnamed else self.loras[name][1]
        if self.stale_prefix and body.get("prompt_logprobs") is None:  # these skip the cache
            model = self.prefixes.setdefault(tuple(ids), model)
        if not body.get("stream"):
            return JSONResponse(await run_in_threadpool(self._whole, body, name, model, prompt, ids, limit))
        return StreamingResponse(
            self._stream(body, name, model, prompt, ids, n, limit, what), media_type="text/event-stream"
        )

    async def _stream(
        self, body: dict[str, Any], name: str, model: Any, prompt: Any, ids: list[int], n: int, limit: int, what: Any
    ) -> AsyncIterator[str]:
        try:
            for index in range(n):
                while self.frozen:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(self.seconds)
                drawn = await run_in_threadpool(self._draw, body, model, prompt, index, limit)
                yield self._chunk(body, name, {"index": index, "delta": {"role": "assistant", "content": ""}}, ids)
                half = len(drawn.ids) // 2
                pieces = [(0, half), (half, len(drawn.ids))] if half else [(0, len(drawn.ids))]
                for start, end in pieces:
                    yield self._chunk(body, name, self._part(body, drawn, index, start, end))
                if what == "break":
                    error = {"message": "EngineCore died", "type": "InternalServerError", "code": 500}
                    yield f"data: {json.dumps({'error': error})}\n\n"
                    return
                if what == "abort":
                    part = {"index": index + 1, "delta": {}, "token_ids": [], "finish_reason": "abort"}
                    yield self._chunk(body, name, part)
                    return
            if (body.get("stream_options") or {}).get("include_usage"):
                usage = {"prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)}
                yield f"data: {json.dumps({**self._envelope(name), 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.running -= 1

    def _prompt(self, body: dict[str, Any]) -> tuple[Any, list[int]]:
        images: list[bytes] = []
        messages: list[dict[str, Any]] = []
        for message in body["messages"]:
            parts = message["content"]
            if isinstance(parts, list):
                images += [data_url(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
                parts = [{"type": "image"} if part["type"] == "image_url" else part for part in parts]
            elif "{% if message['content'] is string" not in self.mind.processor.chat_template:
                parts = [{"type": "text", "text": parts}]
            messages.append({"role": message["role"], "content": parts})
        text = self.mind.processor.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=body.get("add_generation_prompt", True),
            continue_final_message=body.get("continue_final_message", False),
        )
        prompt = self.mind.prepare(text, images, special=body.get("add_special_tokens", False))
        return prompt, prompt["input_ids"][0].tolist()

    def _draw(self, body: dict[str, Any], model: Any, prompt: Any, index: int, limit: int) -> Draw:
        stop = body.get("stop") or []
        how = {name: body.get(name) for name in ("top_k", "min_p", "repetition_penalty", "logit_bias", "ignore_eos")}
        drawn = self.mind.draw(
            model,
            prompt,
            seed=(body.get("seed") or time.time_ns()) + index,
            limit=limit,
            stop=stop,
            temperature=_given(body, "temperature", 0.2),
            top_p=_given(body, "top_p", 0.9),
            **how,
        )
        for one in stop:  # not in the output's text
            drawn.text = drawn.text.split(one)[0]
        return drawn

    def _part(self, body: dict[str, Any], drawn: Draw, index: int, start: int, end: int) -> dict[str, Any]:
        last = end == len(drawn.ids)
        values = drawn.raw if self.mode == "raw_logprobs" else drawn.processed
        part: dict[str, Any] = {
            "index": index,
            "delta": {"content": drawn.text if last else ""},
            "logprobs": {
                "content": [
                    {"token": self.mind.tokenizer.decode([token]), "logprob": lp, "bytes": None, "top_logprobs": []}
                    for token, lp in zip(drawn.ids[start:end], values[start:end], strict=True)
                ]
            },
            "finish_reason": None,
            "stop_reason": None,
        }
        if body.get("return_token_ids"):
            part["token_ids"] = drawn.ids[start:end]
        if last:
            part["finish_reason"] = "length" if drawn.finish == "length" else "stop"
            if drawn.finish == "stop":
                part["stop_reason"] = next(one for one in body["stop"] if one)
            if body.get("return_weight_versions") and self.label is not None:
                part["weight_versions"] = [{"version": self.label, "start": 0, "end": len(drawn.ids)}]
        return part

    @staticmethod
    def _envelope(name: str) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": name}

    def _chunk(self, body: dict[str, Any], name: str, part: dict[str, Any], ids: list[int] | None = None) -> str:
        tree = {**self._envelope(name), "choices": [part]}
        if ids is not None and body.get("return_token_ids"):
            tree["prompt_token_ids"] = ids
        return f"data: {json.dumps(tree)}\n\n"

    def _whole(
        self, body: dict[str, Any], name: str, model: Any, prompt: Any, ids: list[int], limit: int
    ) -> dict[str, Any]:
        drawn = self._draw(body, model, prompt, 0, limit)
        tree: dict[str, Any] = {
            **self._envelope(name),
            "object": "chat.completion",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": drawn.text}, "finish_reason": "length"}
            ],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": len(drawn.ids)},
        }
        if body.get("return_token_ids"):
            tree["prompt_token_ids"] = ids
        if body.get("prompt_logprobs") is not None:
            values = self.mind.scores(model, prompt)
            tree["prompt_logprobs"] = [
                None if lp is None else {str(token): {"logprob": lp, "rank": 1, "decoded_token": ""}}
                for token, lp in zip(ids, values, strict=True)
            ]
        return tree


def _given(body: dict[str, Any], name: str, default: float) -> float:
    return default if body.get(name) is None else float(body[name])


def _error(status: int, message: str, kind: str, param: str | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": status}}, status)


if __name__ == "__main__":
    import uvicorn
    from engine_server import free_socket

    server = VllmServer(Mind(Path(sys.argv[2])))
    server.seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    config = uvicorn.Config(server.app, log_level="error", lifespan="off")
    uvicorn.Server(config).run(sockets=[free_socket(int(sys.argv[1]))])
