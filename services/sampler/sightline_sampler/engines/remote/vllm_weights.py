"""Which weights vLLM holds: adapters under names that are never reused, and one set of base weights."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from sightline.errors import PreconditionFailed
from sightline.sampler.manifest import PolicyManifest, manifest_digest

from sightline_sampler.engine_settings import VllmSettings
from sightline_sampler.engines.base import StagedWeights
from sightline_sampler.engines.remote.backend import Backend, Failure, reason_of
from sightline_sampler.engines.tensorfiles import check_adapter, check_checkpoint

_BASE = "v0"


@dataclasses.dataclass(frozen=True, slots=True)
class _Policy:
    label: str  # version and digest: an adapter's name, a cache's salt, the weights' label
    path: str  # as vLLM sees it
    adapter: bool


class VllmWeights:
    """See the module.

    Args:
        backend: the server.
        settings: how it was started.
        base: the base model's directory here.
        seen_at: a policy's directory as the server sees it.
    """

    def __init__(self, backend: Backend, settings: VllmSettings, base: Path, seen_at: Callable[[Path], str]) -> None:
        self._backend, self._settings, self._base, self._seen_at = backend, settings, base, seen_at
        self._policies: dict[int, _Policy] = {}
        self._served: set[str] = set()  # adapters that the server last listed
        self._slot = 0  # slot whose base weights are loaded; -1 if unknown
        self._wanted = 0  # slot whose base weights should be loaded
        self._label: str | None = None  # the weights' label, if the server reports one
        self._changes = asyncio.Lock()
        self.doubted = False  # adapters were reloaded after a restart (with several replicas)
        self.base_name = settings.served_model
        self.window: int | None = None

    def name_of(self, version: int) -> str:
        """The `model` of a request."""
        policy = self._policies.get(version)
        return policy.label if policy is not None and policy.adapter else self.base_name

    def salt_of(self, version: int) -> str:
        """The `cache_salt` of a request, so that no prefix of another version matches."""
        return self._policies[version].label if version in self._policies else _BASE

    def resident(self, version: int) -> bool:
        """Whether a request can name that version now."""
        if version == 0:
            return self._slot == 0
        policy = self._policies.get(version)
        if policy is None or (policy.adapter and self.doubted):
            return False
        return self._slot == (0 if policy.adapter else version)

    def sampled_by(self, version: int, spans: Sequence[dict[str, Any]] | None) -> bool:
        """Whether all of a candidate's tokens come from the base weights that a version needs.

        If these are a policy's own, the server must report them: after a restart it has the base model's again, and
        reports nothing. Otherwise missing spans are accepted.
        """
        labels = {str(span["version"]) for span in spans or ()}
        policy = self._policies.get(version)
        if policy is not None and not policy.adapter:
            return labels == {policy.label}
        if not labels:
            return self._slot == 0
        return labels == {self._label} or (self._label is None and len(labels) == 1)

    async def still_holds(self, version: int) -> bool:
        """Whether the server reports a policy's own base weights; for other versions it is not asked.

        Raises:
            Failure: it does not answer.
        """
        policy = self._policies.get(version)
        return policy is None or policy.adapter or await self._weight_label() == policy.label

    async def forget_served(self) -> None:
        """Note that the server does not know a name that it listed; the next check loads it again."""
        self._served.clear()

    async def look(self) -> str | None:
        """Read /v1/models, and reload what the server lost in a restart."""
        async with self._changes:
            response = await self._backend.get("/v1/models")
            if response.status_code != 200:
                return f"/v1/models answers {response.status_code}: {reason_of(response)}"
            cards = response.json()["data"]
            bases = [card for card in cards if not card.get("parent")]
            wanted = self._settings.served_model
            base = next((card for card in bases if not wanted or card["id"] == wanted), None)
            if base is None:
                return f"it serves {', '.join(card['id'] for card in bases)}, not {wanted} (engine.vllm.served_model)"
            self.base_name, self.window = str(base["id"]), base.get("max_model_len")
            self._served = {card["id"] for card in cards if card.get("parent")}
            return await self._restore()

    async def stage(self, directory: Path, manifest: PolicyManifest) -> StagedWeights:
        """Check a policy, and load it if it is an adapter.

        Raises:
            PreconditionFailed: it does not fit, or the server refuses it.
        """
        label = f"v{manifest.version}-{(await asyncio.to_thread(manifest_digest, directory))[:12]}"
        policy = _Policy(label, self._seen_at(directory), manifest.kind == "lora")
        if not policy.adapter:
            if not self._settings.dev_mode:
                raise PreconditionFailed(
                    "vLLM takes whole checkpoints through its development endpoints only: start it with "
                    "VLLM_SERVER_DEV_MODE=1 and set engine.vllm.dev_mode, or publish an adapter",
                    reason="POLICY_KIND_UNSUPPORTED",
                )
            staged = await asyncio.to_thread(check_checkpoint, directory, self._base)
        else:
            rank, tower = self._settings.max_lora_rank, self._settings.tower_lora
            staged = await asyncio.to_thread(check_adapter, directory, self._base, most_rank=rank, tower=tower)
            async with self._changes:
                await self._load(policy)
        self._policies[manifest.version] = policy
        return staged

    async def drop(self, version: int) -> None:
        """Unload an adapter; it is no error if it is not loaded."""
        async with self._changes:
            policy = self._policies.get(version)
            if policy is not None and policy.adapter:
                await self._unload(policy)
            self._policies.pop(version, None)

    async def hold(self, version: int) -> None:
        """Load the base weights that a version needs: its own, or for an adapter the base model's.

        Raises:
            PreconditionFailed: the server does not do it, or does not report it afterwards.
        """
        policy = self._policies.get(version)
        slot = version if policy is not None and not policy.adapter else 0
        async with self._changes:
            before, self._wanted = self._wanted, slot
            if slot == self._slot:
                return
            try:
                await self._replace(slot)
            except BaseException:
                self._wanted = before  # the next check restores it
                raise

    def versions(self) -> list[int]:
        """Versions that a request can name now, including the base model if possible."""
        return [version for version in (0, *self._policies) if self.resident(version)]

    async def put_in_again(self) -> None:
        """Load adapters and base weights again, whatever the server reports.

        Raises:
            PreconditionFailed: it refuses them.
        """
        async with self._changes:
            for policy in self._policies.values():
                if policy.adapter:
                    await self._unload(policy)
                    await self._load(policy)
            await self._replace(self._wanted)

    async def clear_caches(self) -> None:
        """Clear cached prefixes and images, which may come from other weights.

        Raises:
            PreconditionFailed: the server does not.
        """
        await self._reset_prefix_cache()
        await self.control("/reset_mm_cache")
        await self.control("/reset_encoder_cache")

    async def control(self, path: str, body: object = None, *, query: dict[str, str] | None = None) -> httpx.Response:
        """A call of a development endpoint.

        Raises:
            PreconditionFailed: the server does not answer with 200.
        """
        try:
            response = await self._backend.post(path, body, seconds=self._settings.swap_seconds, query=query)
        except Failure as failure:
            raise PreconditionFailed(f"vLLM's {path} failed: {failure}", reason="ENGINE_FAILED") from failure
        if response.status_code != 200:
            raise PreconditionFailed(
                f"vLLM's {path} answers {response.status_code}: {reason_of(response)}; it exists only with "
                f"VLLM_SERVER_DEV_MODE=1",
                reason="ENGINE_FAILED",
            )
        return response

    async def _replace(self, slot: int) -> None:
        """Nothing may be sampled meanwhile; all caches are cleared, since they come from other weights."""
        policy = self._policies.get(slot)
        path, label = (
            (policy.path, policy.label) if policy is not None else (self._settings.base_path or str(self._base), _BASE)
        )
        try:  # without an answer, the change may still have been made
            await self.control("/pause", query={"mode": "wait"})
            self._slot = -1  # unknown from here on
            await self.control("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})
            await self.control("/update_weight_version", {"new_version": label})
            await self.clear_caches()
        finally:
            await self.control("/resume")
        held = await self._weight_label()
        if held != label:
            raise PreconditionFailed(f"vLLM reports weights {held!r}, not {label!r}", reason="ENGINE_DID_NOT_CHANGE")
        self._slot, self._label = slot, label

    async def _reset_prefix_cache(self) -> None:
        deadline = time.monotonic() + self._settings.overload_seconds
        while True:
            response = await self.control("/reset_prefix_cache")
            if not response.content or response.json() in (None, {}) or response.json().get("success", True):
                return
            if time.monotonic() > deadline:  # running requests hold blocks
                raise PreconditionFailed(
                    "vLLM does not reset its prefix cache: see its log, and restart it", reason="ENGINE_FAILED"
                )
            await asyncio.sleep(0.1)

    async def _weight_label(self) -> str | None:
        response = await self._backend.get("/weight_info")
        return response.json().get("weight_version") if response.status_code == 200 else None

    async def _restore(self) -> str | None:
        for policy in self._policies.values():
            if policy.adapter and policy.label not in self._served:
                self.doubted = len(self._settings.replicas) > 1
                await self._load(policy)
        if not self._settings.dev_mode:
            return None
        label = await self._weight_label()
        if self._slot >= 0 and label != self._label and self._label is not None:
            self._slot = 0  # it was restarted, and has the base model's weights again
        if self._slot == 0:
            self._label = label
        if self._slot != self._wanted:
            await self._replace(self._wanted)
        return None

    async def _unload(self, policy: _Policy) -> None:
        try:
            response = await self._backend.post("/v1/unload_lora_adapter", {"lora_name": policy.label})
        except Failure:  # an unavailable server has lost it anyway
            return
        if response.status_code not in (200, 404):
            raise PreconditionFailed(
                f"vLLM does not unload {policy.label}: {reason_of(response)}", reason="ENGINE_FAILED"
            )
        self._served.discard(policy.label)

    async def _load(self, policy: _Policy) -> None:
        body = {"lora_name": policy.label, "lora_path": policy.path, "load_inplace": False}
        try:
            response = await self._backend.post("/v1/load_lora_adapter", body)
        except Failure as failure:
            raise PreconditionFailed(
                f"vLLM does not load {policy.path}: {failure}", reason="ADAPTER_DOES_NOT_FIT"
            ) from failure
        if response.status_code == 200 or (response.status_code == 400 and "already been" in reason_of(response)):
            self._served.add(policy.label)  # the name contains the digest, so an adapter with this name is the same
            return
        hint = (
            "; start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
            if response.status_code == 404
            else ""
        )
        raise PreconditionFailed(
            f"vLLM does not load {policy.path} ({response.status_code}): {reason_of(response)}{hint}",
            reason="ADAPTER_DOES_NOT_FIT",
        )
