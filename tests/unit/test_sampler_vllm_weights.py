"""The sampler's record of vLLM's weights when changes are interrupted; with a scripted server."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from sightline.errors import PreconditionFailed
from sightline_sampler.engine_settings import VllmSettings
from sightline_sampler.engines.remote.backend import Failure
from sightline_sampler.engines.remote.vllm_weights import VllmWeights, _Policy


class Server:
    """Obeys; it performs the step named by `at` without answering, or never ends it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.weights, self.label, self.paused = "/base", "v0", False
        self.adapters = {"adapter"}
        self.at, self.fault = "", ""

    async def get(self, path: str) -> httpx.Response:
        if path == "/weight_info":
            return httpx.Response(200, json={"weight_version": self.label})
        cards = [{"id": "m"}, *({"id": name, "parent": "m"} for name in self.adapters)]
        return httpx.Response(200, json={"data": cards})

    async def post(self, path: str, body: Any = None, **_: Any) -> httpx.Response:
        self.calls.append(path)
        if path in ("/pause", "/resume"):
            self.paused = path == "/pause"
        elif path == "/collective_rpc":
            self.weights = body["kwargs"]["weights_path"]
        elif path == "/update_weight_version":
            self.label = body["new_version"]
        if path == self.at:
            if self.fault == "silent":
                raise Failure("broken", "sent nothing for too long")
            if self.fault == "refuses":
                return httpx.Response(500, json={"error": "no"})
            await asyncio.Event().wait()
        if path == "/v1/unload_lora_adapter":
            self.adapters.discard(body["lora_name"])
        return httpx.Response(200)


async def weights(server: Any) -> VllmWeights:
    made = VllmWeights(server, VllmSettings(dev_mode=True, base_path="/base"), Path("/base"), str)
    await made.look()
    made._policies = {1: _Policy("v1-full", "/one", adapter=False), 2: _Policy("adapter", "/two", adapter=True)}
    return made


@pytest.mark.parametrize("at", ["/pause", "/collective_rpc", "/update_weight_version"])
@pytest.mark.parametrize("fault", ["silent", "left"])
def test_a_change_that_is_broken_off_leaves_no_doubt_about_the_weights(at: str, fault: str) -> None:
    """Silent: the answer never comes. Left: the caller does not wait for it."""

    async def run() -> None:
        server = Server()
        held = await weights(server)
        server.at, server.fault = at, fault
        task = asyncio.create_task(held.hold(1))
        for _ in range(10):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises((PreconditionFailed, asyncio.CancelledError)):
            await task
        assert not server.paused
        assert held.resident(0) == (server.weights == "/base")
        assert not held.resident(1)
        server.at = ""
        await held.look()
        assert (server.weights, server.label) == ("/base", "v0")
        assert held.resident(0)

    asyncio.run(run())


@pytest.mark.parametrize("fault", ["refuses", "left"])
def test_an_adapter_that_was_not_unloaded_is_unloaded_at_the_next_try(fault: str) -> None:
    async def run() -> None:
        server = Server()
        held = await weights(server)
        server.at, server.fault = "/v1/unload_lora_adapter", fault
        task = asyncio.create_task(held.drop(2))
        for _ in range(10):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert server.adapters
        server.at = ""
        await held.drop(2)
        assert not server.adapters
        await held.drop(2)  # a missing one is not an error

    asyncio.run(run())


def test_a_restarted_server_that_is_being_mended_does_not_pass_for_the_policy() -> None:
    """While its weights are restored nothing has been reported yet, and an earlier request may end."""

    async def run() -> None:
        server = Server()
        held = await weights(server)
        await held.hold(1)
        found = [{"version": "v1-full"}]
        assert held.sampled_by(1, found)
        assert await held.still_holds(1)
        server.label, server.weights = "v0", "/base"  # restarted
        assert not await held.still_holds(1)
        server.at, server.fault = "/pause", "left"
        task = asyncio.create_task(held.look())
        while "/pause" not in server.calls[-1:]:
            await asyncio.sleep(0)
        assert not held.sampled_by(1, None)
        assert not held.sampled_by(1, [{"version": "v0"}])
        server.at = ""
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await held.look()
        assert server.weights == "/one"
        assert held.sampled_by(1, found)
        assert await held.still_holds(2)

    asyncio.run(run())
