"""Sleep: a vLLM frees its GPU memory while another process needs it, and restores it afterwards.

Level 1 is used: weights and adapters are moved to main memory, and keys and values are dropped. Level 2 would read the
base model's files again and lose later changes, so it is not used. A vLLM has been seen to wake up with other weights
(those on disk instead of the synced ones). So the result is checked: every version must give the same log-probs for a
prompt as before. If one does not, its weights are loaded again, and it is checked once more.
"""

from __future__ import annotations

import base64
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
from sightline.errors import InternalError, PreconditionFailed

from sightline_sampler.engines.picture import colours
from sightline_sampler.engines.remote.backend import Backend, Failure, refused
from sightline_sampler.engines.remote.vllm_weights import VllmWeights

logger = logging.getLogger(__name__)

Said = dict[int, npt.NDArray[np.float64]]

APART = 0.02
"""Maximum difference of a version's log-probabilities after a sleep, in nats a token: engines in half precision
differed by 0.01 to 0.018 from their trainers, and a stale one by 0.2."""


class VllmSleep:
    """See the module; call it with nothing running.

    Args:
        backend: the server.
        weights: the weights that it holds.
    """

    def __init__(self, backend: Backend, weights: VllmWeights) -> None:
        self._backend, self._weights = backend, weights
        self._said: Said | None = None

    async def begin(self) -> None:
        """Put it to sleep, unless it sleeps.

        Raises:
            PreconditionFailed: it does not.
        """
        if self._said is None:
            said = await self._say()
            await self._weights.control("/sleep", query={"level": "1", "mode": "wait"})
            self._said = said
        if not await self.asleep():
            raise PreconditionFailed(
                "vLLM reports that it does not sleep: start it with --enable-sleep-mode", reason="ENGINE_DID_NOT_CHANGE"
            )

    async def end(self) -> None:
        """Wake it up, unless it is awake.

        Raises:
            PreconditionFailed: it does not wake up.
            InternalError: WEIGHTS_DID_NOT_COME_BACK: a version gives other log-probs than before.
        """
        before = self._said
        if before is None and not await self.asleep():
            return
        await self.wake()
        await self._weights.look()  # if it was restarted meanwhile, it has lost its adapters
        for again in (True, False):
            wrong = _changed(before or {}, await self._say())
            if not wrong:
                break
            if not again:
                raise InternalError(
                    f"after a pause policy {wrong[0]} gives other log-probs than before, even after vLLM loaded its "
                    f"weights again",
                    reason="WEIGHTS_DID_NOT_COME_BACK",
                )
            logger.warning("vLLM woke up with other weights of %s: loading them again", wrong)
            await self._weights.put_in_again()
        self._said = None

    async def wake(self) -> None:
        """Wake it up, whoever put it to sleep.

        Raises:
            PreconditionFailed: it does not wake up.
        """
        await self._weights.control("/wake_up")
        if await self.asleep():
            raise PreconditionFailed(
                "vLLM does not wake up: see its log, and restart it", reason="ENGINE_DID_NOT_CHANGE"
            )
        await self._weights.clear_caches()

    async def asleep(self) -> bool:
        """Whether it reports that it sleeps.

        Raises:
            PreconditionFailed: it does not report it.
        """
        try:
            response = await self._backend.get("/is_sleeping")
        except Failure as failure:
            raise PreconditionFailed(f"vLLM's /is_sleeping failed: {failure}", reason="ENGINE_FAILED") from failure
        if response.status_code != 200:
            raise PreconditionFailed(
                f"vLLM's /is_sleeping answers {response.status_code}: it exists only with VLLM_SERVER_DEV_MODE=1 and "
                f"--enable-sleep-mode",
                reason="ENGINE_FAILED",
            )
        return bool(response.json()["is_sleeping"])

    async def _say(self) -> Said:
        """Log-probabilities of a prompt's own tokens under every available version, (n,) each."""
        return {version: await self._prompt_logprobs(version) for version in self._weights.versions()}

    async def _prompt_logprobs(self, version: int) -> npt.NDArray[np.float64]:
        body: dict[str, Any] = {
            "model": self._weights.name_of(version),
            "cache_salt": self._weights.salt_of(version),
            "messages": [{"role": "user", "content": [_picture(), {"type": "text", "text": "What is this?"}]}],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
        }
        try:
            response = await self._backend.post("/v1/chat/completions", body)
        except Failure as failure:
            raise PreconditionFailed(f"vLLM does not score: {failure}", reason="ENGINE_FAILED") from failure
        if response.status_code != 200:
            raise refused("vllm", response)
        entries = response.json()["prompt_logprobs"]
        return np.array([next(iter(entry.values()))["logprob"] for entry in entries if entry])


def _changed(before: Said, after: Said) -> list[int]:
    """Versions whose log-probs changed: too different from before, or nearer to those of another version."""

    def apart(version: int, other: int) -> float:
        return float(np.abs(after[version] - before[other]).mean())

    wrong = []
    for version in before:
        own = apart(version, version) if version in after else np.inf
        if not own <= APART or (own and any(apart(version, other) < own for other in before if other != version)):
            wrong.append(version)
    return wrong


def _picture() -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(colours().content).decode()
    return {"type": "image_url", "image_url": {"url": url}}
