"""The console's application: JSON, server-sent events and one page that loads nothing from elsewhere."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from sightline.errors import NotFound, PreconditionFailed, SightlineError

from sightline_cli.console import form, told
from sightline_cli.console.source import Row, Runs, RunsHere

HERE = Path(__file__).parent
COOKIE = "sightline_console"
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#2457c5"/>'
    '<path d="M4 16q12-13 24 0q-12 13-24 0z" fill="#fff"/><circle cx="16" cy="16" r="5" fill="#2457c5"/></svg>'
)


class StartBody(BaseModel):
    """A run to start."""

    name: str = Field(min_length=1, max_length=100)
    recipe: str
    overrides: list[str] = Field(default=[], max_length=1000)


def console(runs: Runs, token: str, *, local: bool = True) -> FastAPI:
    """The application.

    Args:
        runs: the runs to show.
        token: the token that callers must send.
        local: whether to accept only this machine's own host names.
    """
    app = FastAPI(title="Sightline console", docs_url=None, redoc_url=None, openapi_url=None)
    _guard(app, token, local)
    _pages(app, runs)
    _calls(app, runs)
    return app


def _guard(app: FastAPI, token: str, local: bool) -> None:
    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        why = _refusal(request, token, local)
        if why is not None:
            return JSONResponse({"error": why}, 403)
        response = await call_next(request)
        if request.query_params.get("token"):
            response.set_cookie(_cookie(request), token, httponly=True, samesite="strict", max_age=30 * 86400)
        script = "'unsafe-inline'" if request.url.path.startswith("/report/") else "'self'"  # a report is one file
        response.headers["Content-Security-Policy"] = (
            f"default-src 'self'; script-src {script}; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
            "frame-ancestors 'none'"
        )
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.exception_handler(SightlineError)
    async def known(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 404 if isinstance(error, NotFound) else 400)


def _refusal(request: Request, token: str, local: bool) -> str | None:
    """Why a request is refused: it names another host (DNS rebinding), comes from another site, or lacks the token."""
    hosts = request.headers.getlist("host")
    host = hosts[0] if len(hosts) == 1 else ""
    if local and urlsplit(f"//{host}").hostname not in ("127.0.0.1", "localhost", "::1"):
        return "this page is for http://127.0.0.1 and http://localhost"
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return "requests from other sites are refused"
    if request.method == "POST" and not request.headers.get("content-type", "").startswith("application/json"):
        return "send application/json"
    given = request.query_params.get("token") or request.cookies.get(_cookie(request), "")
    if not hmac.compare_digest(given.encode(), token.encode()):
        return "open the address that `sightline ui` printed: it holds the token, ?token=..."
    return None


def _cookie(request: Request) -> str:
    """The cookie's name, one for each port: browsers send a host's cookies to all of its ports."""
    return f"{COOKIE}_{request.url.port or 80}"


def _pages(app: FastAPI, runs: Runs) -> None:
    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse((HERE / "console.html").read_text(encoding="utf-8"))

    @app.get("/console.css")
    async def style() -> Response:
        return Response((HERE / "console.css").read_text(encoding="utf-8"), media_type="text/css")

    @app.get("/console.js")
    async def script() -> Response:
        return Response((HERE / "console.js").read_text(encoding="utf-8"), media_type="text/javascript")

    @app.get("/favicon.ico")
    async def icon() -> Response:
        return Response(ICON, media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"})

    @app.get("/report/{run}")
    def report(run: str) -> HTMLResponse:
        """The run's report, written now."""
        from sightline_trainer.report.history import History
        from sightline_trainer.report.page import page as made

        return HTMLResponse(made([History.read(_here(runs).directory(run))]))


def _calls(app: FastAPI, runs: Runs) -> None:
    @app.get("/api/runs")
    def listed() -> dict[str, Any]:
        return {"place": runs.place, "files": runs.files, "runs": runs.listed()}

    @app.post("/api/runs")
    def start(body: StartBody) -> dict[str, str]:
        form.shipped_recipe(body.recipe)
        runs.start(body.name, body.recipe, body.overrides)
        return {"id": body.name}

    @app.post("/api/runs/{run}/stop")
    def stop(run: str) -> dict[str, str]:
        runs.stop(run)
        return {"id": run}

    @app.post("/api/runs/{run}/resume")
    def resume(run: str) -> dict[str, str]:
        runs.resume(run)
        return {"id": run}

    @app.get("/api/recipes")
    def recipes() -> list[dict[str, str]]:
        return form.recipes()

    @app.get("/api/recipes/{name}")
    def recipe(name: str) -> list[dict[str, Any]]:
        return form.form(name)

    @app.get("/api/runs/{run}")
    async def about(run: str) -> dict[str, Any]:
        return {**await runs.about(run), "files": runs.files}

    @app.get("/api/runs/{run}/row")
    def row(run: str) -> dict[str, Any]:
        return runs.row(run)

    @app.get("/api/runs/{run}/gallery/{iteration}")
    def gallery(run: str, iteration: int) -> list[dict[str, Any]]:
        return told.gallery(runs.gallery(run, iteration))

    @app.get("/api/compare/{one}/{other}")
    def compare(one: str, other: str) -> dict[str, Any]:
        return told.compared(runs.compared(one, other))

    @app.get("/api/runs/{run}/events")
    async def events(run: str) -> StreamingResponse:
        await asyncio.to_thread(runs.row, run)  # an unknown run is an error
        return StreamingResponse(_stream(runs.news(run)), media_type="text/event-stream")


async def _stream(news: AsyncIterator[Row | None]) -> AsyncIterator[str]:
    """Server-sent events; a comment if there is no event, so that a lost client is noticed."""
    async for found in news:
        yield ": still there\n\n" if found is None else f"data: {json.dumps(found)}\n\n"
    yield "event: end\ndata: {}\n\n"


def _here(runs: Runs) -> RunsHere:
    if not isinstance(runs, RunsHere):
        raise PreconditionFailed(
            "a report needs the run's files, which are on the trainer's machine: open `sightline ui DIRECTORY` there",
            reason="FILES_ELSEWHERE",
        )
    return runs
