"""The server contracts of UniRL's and verl-omni's reward clients, so that users only change a URL.

    UniRL      base_url    http://GATEWAY/unirl             POST /unirl/score, GET /unirl/health; a reward is a model
    verl-omni  server_url  http://GATEWAY/verl_omni/MODEL   pickled images and prompts, read without unpickling

A sample without a score is an error of that sample, or of the request if the contract has no per-sample errors; it is
never 0.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field
from sightline.errors import InvalidInput, SightlineError
from sightline.integrations.columns import base64_bytes
from sightline.scorer.many import Outcome, Pair
from sightline.scorer.wire import ScoreOptions

from sightline_scorer.gateway.errors import status_of
from sightline_scorer.gateway.plain_pickle import plain_values

Ask = Callable[[Request, Sequence["Pair | SightlineError"], ScoreOptions], Awaitable[list[Outcome]]]
_ECHOED = (
    *("request_id", "sample_id", "group_id", "source_rank", "policy_version", "scorer_version", "idempotency_key"),
)


class UniRlTurn(BaseModel):
    """A turn of a sample's history; the last one is scored."""

    text: str = ""
    image_b64: str | None = None


class UniRlSample(BaseModel):
    """A UniRL sample; other keys are ignored."""

    model_config = {"extra": "allow"}

    history: list[UniRlTurn] = Field(min_length=1)
    required_rewards: list[str] = Field(min_length=1, description="Names of the scorer's models")


class UniRlBody(BaseModel):
    """UniRL's request."""

    protocol_version: str = "1"
    requests: list[UniRlSample]


class UniRlAnswer(BaseModel):
    """UniRL's response: a mapping of rewards, or of errors, for each sample."""

    protocol_version: str = "1"
    results: list[dict[str, dict[str, float]]]
    errors: list[dict[str, str]]
    identities: list[dict[str, Any]]


def add_reward_contracts(app: FastAPI, ask: Ask, check_count: Callable[[int], None]) -> None:
    """Add the paths.

    Args:
        app: the gateway.
        ask: returns the outcomes of rows from the scorer.
        check_count: refuses too many rows.
    """
    _add_unirl(app, ask, check_count)
    _add_verl_omni(app, ask, check_count)


def _add_unirl(app: FastAPI, ask: Ask, check_count: Callable[[int], None]) -> None:
    @app.get("/unirl/health")
    async def health(request: Request) -> dict[str, Any]:
        """The first call of UniRL's client: the available rewards."""
        found = await request.app.state.scorer.list_models()
        return {"status": "ok", "rewards": {model.name: ["score"] for model in found.models}}

    @app.post("/unirl/score")
    async def unirl(body: UniRlBody, request: Request) -> UniRlAnswer:
        """UniRL's remote reward: each sample has its rewards, and errors by name."""
        if body.protocol_version != "1":
            raise InvalidInput(f"protocol_version {body.protocol_version!r} is not 1", reason="PROTOCOL_VERSION")
        check_count(sum(len(sample.required_rewards) for sample in body.requests))
        results: list[dict[str, dict[str, float]]] = [{} for _ in body.requests]
        errors: list[dict[str, str]] = [{} for _ in body.requests]
        rows = [_row(sample) for sample in body.requests]
        names = dict.fromkeys(name for sample in body.requests for name in sample.required_rewards)
        for name in names:
            wanted = [number for number, sample in enumerate(body.requests) if name in sample.required_rewards]
            outcomes = await ask(request, [rows[number] for number in wanted], {"model": name})
            for number, outcome in zip(wanted, outcomes, strict=True):
                if isinstance(outcome, SightlineError):
                    errors[number][name] = str(outcome)
                else:
                    results[number][name] = {"score": float(outcome.value[0])}
        identities = [{key: (sample.model_extra or {}).get(key) for key in _ECHOED} for sample in body.requests]
        return UniRlAnswer(results=results, errors=errors, identities=identities)


def _row(sample: UniRlSample) -> Pair | SightlineError:
    last = sample.history[-1]
    if last.image_b64 is None:
        return InvalidInput("the last turn of the history has no image_b64: only images are scored", reason="NO_IMAGE")
    try:
        return base64_bytes(last.image_b64), [last.text]
    except SightlineError as error:
        return error


def _add_verl_omni(app: FastAPI, ask: Ask, check_count: Callable[[int], None]) -> None:
    @app.post("/verl_omni", include_in_schema=False)
    @app.post("/verl_omni/{model}")
    async def verl_omni(request: Request, model: str = "") -> Response:
        """verl-omni's (flow_grpo's) pickled request; the model is the path's, or the scorer's default."""
        try:
            images, prompts = _images_and_prompts(await asyncio.to_thread(plain_values, await request.body()))
            check_count(len(images))
            rows: list[Pair | SightlineError] = [
                (image, [prompt]) for image, prompt in zip(images, prompts, strict=True)
            ]
            outcomes = await ask(request, rows, {"model": model})
        except SightlineError as error:
            return _pickled({"error": str(error)}, status_of(error))
        scores = []
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, SightlineError):
                return _pickled({"error": f"image {number}: {outcome}"}, status_of(outcome))
            scores.append(float(outcome.value[0]))
        return _pickled({"scores": scores}, 200)


def _images_and_prompts(body: Any) -> tuple[list[bytes], list[str]]:
    """Raises InvalidInput for a body of another form."""
    if isinstance(body, dict):
        images, prompts = body.get("images"), body.get("prompts")
        if (
            isinstance(images, list)
            and isinstance(prompts, list)
            and len(images) == len(prompts) > 0
            and all(isinstance(image, bytes) for image in images)
            and all(isinstance(prompt, str) for prompt in prompts)
        ):
            return images, prompts
    raise InvalidInput(
        "the pickle holds no lists `images` (bytes of files) and `prompts` (texts) of one length", reason="BODY_FORM"
    )


def _pickled(body: dict[str, Any], status: int) -> Response:
    return Response(pickle.dumps(body), status, media_type="application/octet-stream")
