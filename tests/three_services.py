"""Three services: scorer, sampler and trainer on tiny models, served together from a thread of the test process."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scorer_models
from sampler_models import make_llava
from sightline_chassis.process import Addresses, serving

SERVICES = ("scorer", "sampler", "trainer")


def settings(name: str, root: Path, common: dict[str, Any]) -> tuple[Any, Any]:
    """A service's class and settings.

    Args:
        name: one of SERVICES.
        root: for its models and files.
        common: sections that all of them have.
    """
    if name == "scorer":
        from sightline_scorer.service import ScorerService
        from sightline_scorer.settings import ScorerSettings

        models = {"tiny": {"source": str(scorer_models.tiny(root / "tiny"))}}
        triton = {"device": "cpu", "threads": 1, "stop_grace_seconds": 0}
        tree = {"models": models, "triton": triton, "reload": {"rpc": True}}
        return ScorerService, ScorerSettings.model_validate(common | tree)
    if name == "sampler":
        from sightline_sampler.service import SamplerService
        from sightline_sampler.settings import SamplerSettings

        engine = {"model": str(make_llava(root / "llava")), "threads": 1}
        return SamplerService, SamplerSettings.model_validate(common | {"engine": engine})
    from sightline_trainer.server import TrainerService
    from sightline_trainer.settings import TrainerSettings

    return TrainerService, TrainerSettings.model_validate(common | {"runs": root / "runs"})


@contextlib.contextmanager
def three_services(root: Path, common: dict[str, Any]) -> Iterator[dict[str, Addresses]]:
    """Run all three on their own event loop; yields their addresses by name. Arguments as for `settings`."""
    loop, done, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    failed: list[BaseException] = []
    found: dict[str, Addresses] = {}

    async def serve() -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                for name in SERVICES:
                    kind, chosen = settings(name, root, common)
                    service = kind(chosen, reread=lambda at=chosen: at) if name == "scorer" else kind(chosen)
                    found[name] = await stack.enter_async_context(serving(service, chosen))
                ready.set()
                await done.wait()
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait(120)
    try:
        if failed:
            raise failed[0]
        yield found
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(60)
        loop.close()
