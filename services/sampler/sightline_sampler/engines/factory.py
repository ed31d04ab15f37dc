"""The engine that the settings name. PyTorch is imported only for the engine in process."""

from __future__ import annotations

from collections.abc import Callable

from sightline_sampler.engine_settings import EngineSettings
from sightline_sampler.engines.base import Engine
from sightline_sampler.settings import SamplerLimits


def make_engine(settings: EngineSettings, limits: SamplerLimits, *, on_step: Callable[[int], None]) -> Engine:
    """Make an engine; its `start` loads the model.

    Args:
        settings: which engine, and how it runs.
        limits: limits of images and candidates.
        on_step: called with the number of candidates of each decoding step, if the engine knows it.
    """
    match settings.kind:
        case "tgi":
            from sightline_sampler.engines.remote.tgi import TgiEngine

            return TgiEngine(settings, limits)
        case "vllm":
            from sightline_sampler.engines.remote.vllm import VllmEngine
            from sightline_sampler.engines.remote.vllm_replicas import VllmReplicas

            several = len(settings.vllm.replicas) > 1
            return VllmReplicas(settings, limits) if several else VllmEngine(settings, limits)
        case "transformers":
            from sightline_sampler.engines.local.transformers import TransformersEngine

            return TransformersEngine(settings, limits, on_step=on_step)
