"""What a user adds to a profile: claims with models and data, and values for a machine without a GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from charts import profile
from images import ROOT

WEIGHTS = ROOT / "playground/weights"
CPU = {"triton": {"device": "cpu"}}


LAUNCH = ["python", "-m", "sightline_trainer.job", "/etc/sightline-job/job.yaml"]


def recipe(prompts: int) -> dict[str, Any]:
    """A loop of two iterations on the playground's models and data."""
    return {
        "name": "loop",
        "model": "/models/llava",
        "iterations": 2,
        "data": {"train": "/data/train", "test": "/data/test", "prompts_per_iteration": prompts},
        "sampling": {"candidates": 4, "max_tokens": 24},
        "dpo": {"batch_size": 8, "learning_rate": 5e-4},
        "evaluation": {"prompts": 8, "greedy_prompts": 4, "questions": 8, "diverse_prompts": 2},
    }


def values_of(name: str, prompts: int) -> dict[str, Any]:
    """The values of a profile, with the changes that this machine needs."""
    values = profile(name)
    values.setdefault("trainer", {})["recipes"] = {"loop": recipe(prompts)}
    extra = {"OMP_NUM_THREADS": "1"}
    values.setdefault("global", {})["extraEnv"] = extra
    if name == "single-gpu":
        # There is neither a hub nor a GPU: use the playground's CLIP from a claim, in float32 on the CPU.
        values["models"]["clip"] = {"existingClaim": "models", "subPath": "clip"}
        values["models"]["llava"]["subPath"] = "llava"
        values["scorer"]["models"]["default"]["precision"] = "fp32"
        for at in (values["scorer"]["triton"], values["sampler"], values["trainer"]):
            at["gpu"] = {"count": 0}
        values["scorer"]["settings"] = CPU
    if name.startswith("multi-node"):
        # One machine of two cores replaces several nodes with GPUs: one pod of each kind, except for the engines.
        values["models"]["clip"]["subPath"] = "clip"
        values["models"]["llava"]["subPath"] = "llava"
        values["scorer"].pop("autoscaling", None)
        values["scorer"]["replicas"] = 1
        values["scorer"]["models"]["default"]["precision"] = "fp32"
        values["scorer"]["triton"]["replicas"] = 1
        for at in (values["scorer"]["triton"], values["sampler"]["engine"]["server"], values["trainer"]):
            at["gpu"] = {"count": 0}
        values["scorer"]["settings"] = CPU
        if values["trainer"].get("update", {}).get("kind") == "job":
            values["trainer"]["update"]["processes"] = 1
            values["trainer"]["recipes"]["loop"]["dpo"]["launch"] = LAUNCH
        if values.get("auth"):  # also serve teams without gRPC, in the profile with tokens and certificates
            values["gateway"] = {
                "enabled": True,
                "replicas": 1,
                "token": {"existingSecret": "sightline-trainer-token"},
                "callerToken": {"existingSecret": "gateway-callers"},
                "tls": {"existingSecret": "gateway-tls"},
            }
        if values["sampler"]["engine"]["kind"] == "tgi":  # its log-probs are of half precision
            values["trainer"]["recipes"]["loop"]["dpo"]["max_sampled_gap"] = 0.05
    return values


def claims() -> dict[str, Callable[[Path], None]]:
    """Contents of the claims that the profiles name."""

    def weights(path: Path) -> None:
        shutil.copytree(WEIGHTS, path, dirs_exist_ok=True)

    def data(path: Path) -> None:
        for split, world, count, seed in (("train", "align", 128, 1), ("test", "test", 16, 2)):
            command = [sys.executable, "-m", "sightline_playground", "export", "--out", str(path / split)]
            command += ["--split", world, "--count", str(count), "--seed", str(seed)]
            subprocess.run(command, check=True, capture_output=True)

    def nothing(path: Path) -> None:
        """An empty directory."""

    models = dict.fromkeys(("playground-weights", "models", "models-ro"), weights)
    return {**models, "runs-rwx": nothing, "playground-data": data, "data": data}
