"""TGI restarts for a policy, and the caller leaves meanwhile."""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from sightline_sampler.engine_settings import EngineSettings
from sightline_sampler.engines.remote import tgi
from sightline_sampler.engines.remote.restart import restart
from sightline_sampler.engines.remote.tgi import TgiEngine
from sightline_sampler.settings import SamplerLimits


def settings(**section: Any) -> EngineSettings:
    return EngineSettings.model_validate({"kind": "tgi", "model": "/base", "tgi": {"url": "http://tgi", **section}})


def test_the_policy_before_is_restarted_where_another_one_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old process still answers with its old model: a rollback must not take that for success."""

    async def run() -> None:
        section = settings(poll_seconds=0.1, restart_command=["true"])
        engine, restarts, serving = TgiEngine(section, SamplerLimits()), list[str](), "/base"
        engine._models[1] = "/one"

        class Backend:
            async def get(self, path: str) -> httpx.Response:
                return httpx.Response(200, json={"model_id": serving})

        engine._backend = Backend()  # type: ignore[assignment]

        async def asked(_: Any, *, model: str, version: int) -> None:
            restarts.append(model)

        monkeypatch.setattr(tgi, "restart", asked)
        task = asyncio.create_task(engine.activate(1))
        while not restarts:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await engine.activate(0)
        assert restarts == ["/one", "/base"]
        await engine.activate(0)
        assert restarts == ["/one", "/base"]

    asyncio.run(run())


def test_a_command_that_nobody_waits_for_is_ended(tmp_path: Path) -> None:
    async def run() -> None:
        mark = tmp_path / "mark"
        code = f"import time, pathlib; pathlib.Path({str(mark)!r}).touch(); time.sleep(60)"
        section = settings(restart_command=[sys.executable, "-S", "-c", code]).tgi
        task = asyncio.create_task(restart(section, model="/one", version=1))
        while not mark.exists():
            await asyncio.sleep(0.01)
        task.cancel()
        began = time.monotonic()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(mark).encode() in _read(path)]
        assert time.monotonic() - began < 30

    asyncio.run(run())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
