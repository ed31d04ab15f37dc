"""The gateway's application."""

from __future__ import annotations

import dataclasses
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from sightline.errors import InvalidInput, PreconditionFailed, SightlineError, Unauthenticated
from sightline.integrations.failures import FailurePolicy
from sightline.integrations.openrlhf import Convention, answer
from sightline.scorer import AsyncScorerClient
from sightline.scorer.many import Outcome, Pair
from sightline.scorer.wire import ScoreOptions

from sightline_scorer.credential_files import credentials
from sightline_scorer.gateway.bodies import (
    FailureBody,
    ManyBody,
    ModelsBody,
    OutcomeBody,
    ResultBody,
    RewardBody,
    RewardsBody,
    ScoreBody,
    ScoreManyBody,
    UploadBody,
    error_body,
    model_body,
    result_body,
)
from sightline_scorer.gateway.docs_page import add_docs_page
from sightline_scorer.gateway.errors import ALWAYS_OPEN, BoundedRequests, failure, handle, lenient_json
from sightline_scorer.gateway.reading import BoundedBodies
from sightline_scorer.gateway.reward_contracts import add_reward_contracts
from sightline_scorer.gateway.settings import GatewaySettings, TargetSettings
from sightline_scorer.gateway.traced import TracedRequests

FAILURES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": FailureBody, "description": "The request is wrong, or the service is overloaded (429)"},
    "5XX": {"model": FailureBody, "description": "The scorer is unavailable, late or broken"},
}


def gateway(settings: GatewaySettings) -> FastAPI:
    """The application; it connects to the scorer when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncScorerClient(settings.scorer.target, **credentials(settings.scorer)) as app.state.scorer:
            yield

    app = FastAPI(
        title="Sightline scorer",
        docs_url=None,  # FastAPI's own pages load scripts from a CDN
        redoc_url=None,
        description="How well does each text fit its image? Each failure is an error, never a number.",
        version="1",
        lifespan=lifespan,
        responses=FAILURES,
    )
    handle(app)
    app.add_middleware(BoundedRequests, limit=settings.http.max_requests)
    app.add_middleware(BoundedBodies, http=settings.http)
    _ask_for_token(app, settings.http.token_file)  # before a body is read
    app.add_middleware(TracedRequests)  # the outermost, so that refused requests are in the trace too
    _scores(app, settings)
    _rewards(app, settings)

    async def ask(request: Request, rows: Sequence[Pair | SightlineError], options: ScoreOptions) -> list[Outcome]:
        return await _outcomes(request, rows, settings.scorer, options)

    add_reward_contracts(app, ask, lambda count: _check_count(count, settings))
    add_docs_page(app)
    return app


def _ask_for_token(app: FastAPI, file: Path | None) -> None:
    if file is None:
        return
    token = file.read_text().strip()
    if not token:
        raise PreconditionFailed(f"http.token_file {file} is empty: write the token into it", reason="TOKEN_FILE")
    expected = f"Bearer {token}".encode()

    @app.middleware("http")
    async def check(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("authorization", "").encode()
        if request.url.path not in ALWAYS_OPEN and not hmac.compare_digest(given, expected):
            return failure(Unauthenticated("send the gateway's token as Authorization: Bearer", reason="TOKEN_WRONG"))
        return await call_next(request)


def _scores(app: FastAPI, settings: GatewaySettings) -> None:
    @app.post("/v1/score", response_model=ResultBody)
    async def score(body: ScoreBody, request: Request) -> ResultBody:
        """Compare one image with its texts."""
        client: AsyncScorerClient = request.app.state.scorer
        found = await client.score(
            body.image.image(),
            body.texts,
            phrases=body.phrases,
            timeout=settings.scorer.timeout_seconds,
            **body.options(),
        )
        return result_body(found)

    @app.post("/v1/score_many", response_model=ManyBody)
    async def score_many(body: ScoreManyBody, request: Request) -> ManyBody:
        """Compare many images, each with its texts. 200 even if items failed: each has its own outcome."""
        _check_count(len(body.items), settings)
        rows: list[Pair | SightlineError] = []
        for item in body.items:
            try:
                rows.append((item.image.image(), item.texts, item.phrases))
            except SightlineError as error:
                rows.append(error)
        outcomes = await _outcomes(request, rows, settings.scorer, body.options())
        return ManyBody(
            outcomes=[
                OutcomeBody(error=error_body(outcome))
                if isinstance(outcome, SightlineError)
                else OutcomeBody(result=result_body(outcome))
                for outcome in outcomes
            ]
        )

    @app.post("/v1/images", response_model=UploadBody)
    async def upload(request: Request) -> UploadBody:
        """Store an image, given as the raw body; requests can then name it by its digest."""
        client: AsyncScorerClient = request.app.state.scorer
        (digest,) = await client.upload([await request.body()], timeout=settings.scorer.timeout_seconds)
        if isinstance(digest, SightlineError):
            raise digest
        return UploadBody(sha256=digest.sha256)

    @app.get("/v1/models", response_model=ModelsBody)
    async def models(request: Request) -> ModelsBody:
        """The models and limits of the scorer."""
        found = await request.app.state.scorer.list_models()
        return ModelsBody(models=list(map(model_body, found.models)), limits=dataclasses.asdict(found.limits))

    @app.get("/healthz")
    async def healthz(request: Request) -> dict[str, str]:
        """200 if the scorer behind it answers, otherwise 503."""
        await request.app.state.scorer.list_models(timeout=2.0)
        return {"status": "serving"}


def _rewards(app: FastAPI, settings: GatewaySettings) -> None:
    own = settings.openrlhf
    convention = Convention(own.response_after)

    @app.post("/get_reward", response_model=RewardsBody)
    async def get_reward(body: RewardBody, request: Request) -> Response:
        """OpenRLHF's remote reward. `openrlhf.on_failure` decides about rows without a score."""
        if own.on_failure is None:
            raise PreconditionFailed(
                "say what a row without a score gets: openrlhf.on_failure=raise, drop or value",
                reason="ON_FAILURE_UNSET",
            )
        _check_count(len(body.query), settings)
        rows = convention.pairs(body.query, body.prompts, body.labels)
        options: ScoreOptions = {"model": own.model, "kind": own.kind}
        outcomes = await _outcomes(request, rows, settings.scorer, options)
        return lenient_json(answer(outcomes, FailurePolicy(own.on_failure, own.failure_value)))


async def _outcomes(
    request: Request, rows: Sequence[Pair | SightlineError], settings: TargetSettings, options: ScoreOptions
) -> list[Outcome]:
    """An outcome for each row; rows that failed already are not sent."""
    client: AsyncScorerClient = request.app.state.scorer
    scored = client.score_many(
        [row for row in rows if not isinstance(row, SightlineError)],
        timeout=settings.timeout_seconds,
        max_in_flight=settings.max_in_flight,
        **options,
    )
    return [row if isinstance(row, SightlineError) else await anext(scored) for row in rows]


def _check_count(count: int, settings: GatewaySettings) -> None:
    if count > settings.http.max_items:
        raise InvalidInput(
            f"{count} items, over the limit of {settings.http.max_items}: send several requests",
            reason="TOO_MANY_ITEMS",
        )
