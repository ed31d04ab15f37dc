"""The part of lmms-eval 0.7.3 that an adapter needs, written from its sources; used if it is not installed."""

import abc
import dataclasses
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CacheHook:
    """lmms_eval.api.model.CacheHook, without a cache."""

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        pass


class lmms(abc.ABC):
    """lmms_eval.api.model.lmms: three abstract methods, task_dict filled by the evaluator before it asks."""

    is_simple: bool = True

    def __init__(self) -> None:
        self.cache_hook = CacheHook()
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
        pairs = dict(part.split("=", 1) for part in arg_string.split(",") if part)
        return cls(**pairs, **{k: v for k, v in (additional_config or {}).items() if v is not None})


@dataclasses.dataclass
class Instance:
    """lmms_eval.api.instance.Instance: arguments are (context, generation settings, doc_to_visual, id, task, split)."""

    request_type: str
    arguments: tuple[str, dict[str, Any], Callable[[Any], Any], int, str, str]
    idx: int
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


@dataclasses.dataclass(frozen=True)
class ModelManifest:
    """lmms_eval.models.registry_v2.ModelManifest."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


def modules() -> dict[str, ModuleType]:
    """The recorded interface as modules under lmms-eval's names."""
    found: dict[str, ModuleType] = {}
    parts: dict[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.api.instance": {"Instance": Instance},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        found[name] = module
    return found


def forget() -> None:
    """Drop the adapter, so that it is imported again with the current modules."""
    sys.modules.pop("sightline_trainer.evaluation.lmms_eval_model", None)
