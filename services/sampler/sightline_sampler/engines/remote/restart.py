"""Restart an engine that loads weights only at start, by a command or a rollout of its Kubernetes Deployment."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import httpx
from sightline.errors import PreconditionFailed

from sightline_sampler.engine_settings import KubernetesSettings, TgiSettings

logger = logging.getLogger(__name__)


async def restart(settings: TgiSettings, *, model: str, version: int) -> None:
    """Request a restart with another model; returns before the engine is up.

    Args:
        settings: how to restart.
        model: the model's directory as the engine sees it.
        version: the policy's version, for the command.

    Raises:
        PreconditionFailed: no way to restart is configured, or it failed.
    """
    if settings.restart_command:
        await _run([part.format(directory=model, version=version) for part in settings.restart_command], settings)
    elif settings.kubernetes is not None:
        async with httpx.AsyncClient(verify=_authority(settings.kubernetes), trust_env=False, timeout=30) as client:
            await roll_out(client, settings.kubernetes, model)
    else:
        raise PreconditionFailed(
            f"TGI must be restarted with --model-id {model}, but no way to restart it is set: set "
            f"engine.tgi.restart_command or "
            "engine.tgi.kubernetes, or restart it and activate again",
            reason="NO_RESTART_HOOK",
        )


async def roll_out(client: httpx.AsyncClient, settings: KubernetesSettings, model: str) -> None:
    """Patch the environment variable of the Deployment's container; Kubernetes then replaces its pods.

    Old pods stop before new ones start, and the Deployment should have one replica behind the engine's address, since
    otherwise pods with two models would answer in turn.

    Raises:
        PreconditionFailed: the API refuses, or cannot be reached.
    """
    try:
        namespace = settings.namespace or (settings.account / "namespace").read_text().strip()
        token = (settings.account / "token").read_text().strip()
    except OSError as error:
        raise PreconditionFailed(f"no service account: {error}", reason="RESTART_FAILED") from error
    environment = [{"name": settings.variable, "value": model}]
    pods = {"spec": {"containers": [{"name": settings.container, "env": environment}]}}
    recreate = {"$retainKeys": ["type"], "type": "Recreate"}  # a strategic merge would keep `rollingUpdate`, too
    try:
        response = await client.patch(
            f"{settings.api}/apis/apps/v1/namespaces/{namespace}/deployments/{settings.deployment}",
            json={"spec": {"strategy": recreate, "template": pods}},
            headers={"authorization": f"Bearer {token}", "content-type": "application/strategic-merge-patch+json"},
        )
    except httpx.HTTPError as error:
        raise PreconditionFailed(f"the Kubernetes API cannot be reached: {error}", reason="RESTART_FAILED") from error
    if response.status_code != 200:
        raise PreconditionFailed(
            f"Kubernetes refuses to roll out {namespace}/{settings.deployment} ({response.status_code}): "
            f"{response.text[:300]}; the sampler's service account needs `patch` on it",
            reason="RESTART_FAILED",
        )


def _authority(settings: KubernetesSettings) -> str | bool:
    ca = Path(settings.account / "ca.crt")
    return str(ca) if ca.exists() else True


async def _run(command: list[str], settings: TgiSettings) -> None:
    logger.info("restarting TGI", extra={"command": command})
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        raise PreconditionFailed(
            f"{command[0]} cannot be run: {error}; correct engine.tgi.restart_command", reason="RESTART_FAILED"
        ) from error
    try:
        async with asyncio.timeout(settings.swap_seconds):
            out, _ = await process.communicate()
    except TimeoutError:
        raise PreconditionFailed(
            f"{command[0]} did not end within {settings.swap_seconds:g} s: TGI was not restarted; raise "
            "engine.tgi.swap_seconds if it needs longer",
            reason="RESTART_FAILED",
        ) from None
    finally:
        if process.returncode is None:  # no caller waits for it, and it would restart TGI unnoticed
            process.kill()
            await process.wait()
    if process.returncode:
        raise PreconditionFailed(
            f"{command[0]} ended with {process.returncode}: {out.decode(errors='replace')[-300:]}",
            reason="RESTART_FAILED",
        )
