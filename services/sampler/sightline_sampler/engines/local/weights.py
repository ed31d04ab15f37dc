"""The weights of every loaded policy, and which of them the next forward pass uses.

Version 0 is the base model. A LoRA policy is an adapter inside the base model (PEFT layers; with adapters off these
only call the base layer, so version 0 is unchanged). A merged or full policy is a separate model.

PEFT silently loads an adapter whose keys do not match: the layers keep their initial values, and the policy answers
like the base model. So keys are compared here, both ways, before loading, and an adapter that changes nothing is
refused. Only the decoding thread may call methods that change the base model (`install`, `drop`, `use`).

PEFT is imported with the first adapter: a start without one is a CPU second and 40 MiB cheaper.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from sightline.errors import PreconditionFailed
from sightline.sampler.manifest import PolicyManifest

from sightline_sampler.engines.base import StagedWeights
from sightline_sampler.engines.local import attention
from sightline_sampler.engines.local.model import BaseModel, load_weights
from sightline_sampler.engines.tensorfiles import check_scale

_ADAPTER = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PEFT = r"peft\.tuners\.tuners_utils$"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A LoRA policy read from disk: its config, and its tensors by name within the base model."""

    version: int
    config: Any
    tensors: dict[str, torch.Tensor]
    whole: dict[str, dict[str, torch.Tensor]]
    """Modules that were trained completely beside it (PEFT's modules_to_save), such as the projector, and their
    tensors."""

    @property
    def name(self) -> str:
        """The adapter's name inside PEFT."""
        return f"v{self.version}"


@dataclasses.dataclass(frozen=True)
class _Policy:
    model: Any
    adapter: str | None
    vision: int  # the version whose image features this one shares
    modules: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # instead of the base model's, by name
    directory: Path | None = None  # for a separate model


class Weights:
    """All loaded policies."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._policies = {0: _Policy(base.model, None, 0)}
        self._current: str | None = None
        self._layers: list[Any] = []
        self._originals: dict[str, Any] = {}  # the base model's own modules, for names that a policy replaces

    def __contains__(self, version: int) -> bool:
        return version in self._policies

    def use(self, version: int) -> Any:
        """The model for the next forward pass of `version`, with its adapter switched on."""
        policy = self._policies[version]
        if policy.model is self._base.model and policy.adapter != self._current:
            for layer in self._layers:
                layer.enable_adapters(policy.adapter is not None)
                if policy.adapter is not None:
                    layer.set_adapter([policy.adapter] if _has(layer, policy.adapter) else [], inference_mode=True)
            for name, original in self._originals.items():
                self._base.model.set_submodule(name, policy.modules.get(name, original))
            self._current = policy.adapter
        return policy.model

    def versions(self) -> list[int]:
        """All of them."""
        return sorted(self._policies)

    def models(self) -> Iterator[tuple[Any, Path]]:
        """The models with their own weights, the base model first, and the directories that they were read from."""
        yield self._base.model, self._base.directory
        for policy in self._policies.values():
            if policy.directory is not None:
                yield policy.model, policy.directory

    def vision_key(self, version: int) -> int:
        """Versions with the same key give the same image features."""
        return self._policies[version].vision

    def read(self, directory: Path, manifest: PolicyManifest) -> Any:
        """Read a policy from disk without changing loaded ones; may run in any thread.

        Raises:
            PreconditionFailed: it is not an adapter or checkpoint for this base model.
        """
        if manifest.kind == "lora":
            return self._read_adapter(directory, manifest.version)
        return self._read_checkpoint(directory)

    def install(self, manifest: PolicyManifest, loaded: Any, directory: Path) -> StagedWeights:
        """Install a policy that `read` returned.

        Raises:
            PreconditionFailed: keys missing or left over, or nothing changed.
        """
        version = manifest.version
        self._forget(version)
        if isinstance(loaded, Adapter):
            return self._install_adapter(loaded)
        self._policies[version] = _Policy(loaded, None, version, directory=directory)
        return StagedWeights(tensors=len(loaded.state_dict()), modules=0)

    def drop(self, version: int) -> None:
        """Remove a policy, if it is loaded."""
        self._forget(version)
        policy = self._policies.pop(version, None)
        if policy is not None and policy.adapter is not None:
            self._remove(policy.adapter)

    def _forget(self, version: int) -> None:
        if self._base.graphs is not None:
            self._base.graphs.forget(version)

    def _read_adapter(self, directory: Path, version: int) -> Adapter:
        import peft

        try:
            config = peft.PeftConfig.from_pretrained(str(directory))
            tensors = load_file(directory / _ADAPTER)
        except Exception as error:  # PEFT and safetensors raise many kinds of errors
            raise PreconditionFailed(
                f"{directory} is not a PEFT adapter: {error}", reason="ADAPTER_UNREADABLE"
            ) from error
        if config.peft_type != peft.PeftType.LORA:
            raise PreconditionFailed(
                f"the adapter is {config.peft_type}, and this engine takes only LoRA: publish it merged",
                reason="ADAPTER_UNSUPPORTED",
            )
        if config.bias != "none":
            raise PreconditionFailed(
                "the adapter also trains biases: publish it merged",
                reason="ADAPTER_UNSUPPORTED",
            )
        named = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
        whole: dict[str, dict[str, torch.Tensor]] = {}
        for module in config.modules_to_save or ():
            keys = [name for name in named if name.startswith(f"{module}.") and ".lora_" not in name]
            whole[module] = {name.removeprefix(f"{module}."): named.pop(name) for name in keys}
        config.inference_mode, config.modules_to_save = True, None
        return Adapter(version, config, named, whole)

    def _read_checkpoint(self, directory: Path) -> Any:
        base = self._base
        try:
            model = load_weights(directory, base.device, str(base.dtype).removeprefix("torch."))
        except PreconditionFailed:
            raise
        except Exception as error:  # transformers and safetensors raise many kinds of errors
            raise PreconditionFailed(f"{directory} cannot be loaded: {error}", reason="WEIGHTS_DO_NOT_FIT") from error
        ours, theirs = base.model.config, model.config
        if (
            type(model) is not type(base.model)
            or ours.get_text_config().vocab_size != theirs.get_text_config().vocab_size
        ):
            raise PreconditionFailed(
                f"{directory} is a {type(model).__name__}, and the base model a {type(base.model).__name__}"
                if type(model) is not type(base.model)
                else f"{directory} has another vocabulary than the base model",
                reason="WEIGHTS_DO_NOT_FIT",
            )
        model.set_attn_implementation(attention.NAME)
        mine = {
            name.replace(".base_layer.", "."): p for name, p in base.model.named_parameters() if "lora_" not in name
        }
        if all(torch.equal(p, mine[name]) for name, p in model.named_parameters() if name in mine):
            raise PreconditionFailed(
                f"{directory} contains the base model's weights: this policy changes nothing",
                reason="POLICY_CHANGES_NOTHING",
            )
        if bad := [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]:
            raise PreconditionFailed(
                f"{bad[0]} is not finite: publish weights without NaN or infinity", reason="WEIGHTS_NOT_FINITE"
            )
        return model

    def _install_adapter(self, adapter: Adapter) -> StagedWeights:
        from peft import functional as peft_functional
        from peft.tuners.lora import LoraLayer

        net, name = self._base.model, adapter.name
        modules = {target: self._replaced(target, tensors) for target, tensors in adapter.whole.items()}
        self._current = "?"  # injecting switches adapters; the next `use` restores them
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning, _PEFT)
                peft_functional.inject_adapter_in_model(adapter.config, net, adapter_name=name)
        except Exception as error:  # from PEFT: an unknown module name, a kind of layer that it cannot wrap, ...
            self._remove(name)
            raise PreconditionFailed(
                f"the adapter does not fit the base model: {error}", reason="ADAPTER_DOES_NOT_FIT"
            ) from error
        try:
            self._layers = [m for m in net.modules() if isinstance(m, LoraLayer)]
            expected = peft_functional.get_peft_model_state_dict(net, adapter_name=name)
            _compare({key.removeprefix(_PREFIX): tensor for key, tensor in expected.items()}, adapter.tensors)
            scales = {key: layer.scaling[name] for key, layer in net.named_modules() if _scaled(layer, name)}
            for key, scale in scales.items():
                check_scale(key, scale)
            changed = _changed({k: t for k, t in adapter.tensors.items() if scales.get(k.partition(".lora_")[0], 1)})
            result = peft_functional.set_peft_model_state_dict(net, adapter.tensors, adapter_name=name)
            left = [key for key in result.missing_keys if f".{name}." in key] + list(result.unexpected_keys)
            if left:
                raise _mismatch("PEFT left over", left)
        except BaseException:
            self._remove(name)
            raise
        net.eval().requires_grad_(False)  # PEFT's layers start in training mode, with dropout on
        prefix = self._base.text_prefix
        text_only = bool(prefix) and all(key.startswith((f"{prefix}.", "lm_head.")) for key in adapter.tensors)
        for target in modules:
            self._originals.setdefault(target, net.get_submodule(target))
        shared = text_only and not modules
        self._policies[adapter.version] = _Policy(net, name, 0 if shared else adapter.version, modules)
        tensors = len(adapter.tensors) + sum(map(len, adapter.whole.values()))
        return StagedWeights(tensors=tensors, modules=len(changed) + len(modules))

    def _replaced(self, target: str, tensors: dict[str, torch.Tensor]) -> Any:
        """A copy of one of the base model's modules with a policy's tensors.

        Raises:
            PreconditionFailed: there is no such module, it is not a projector or tower, or the tensors differ.
        """
        net, prefix = self._base.model, self._base.text_prefix
        own = self._originals.get(target)
        if own is None and target in dict(net.named_modules()):
            own = net.get_submodule(target)
        inside = target.startswith(f"{prefix}.") or (prefix and f"{prefix}.".startswith(f"{target}."))
        if own is None or own is net.get_output_embeddings() or inside:
            raise PreconditionFailed(
                f"the adapter also trains the whole module {target} (modules_to_save), which is not a module beside "
                f"the language model: publish it merged",
                reason="ADAPTER_UNSUPPORTED",
            )
        _compare(own.state_dict(), tensors)
        made = copy.deepcopy(own)
        made.load_state_dict(tensors)
        return made.eval().requires_grad_(False)

    def _remove(self, name: str) -> None:
        from peft import functional as peft_functional
        from peft.tuners.lora import LoraLayer

        net = self._base.model
        self._current = "?"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Adapter .* was active which is now deleted", UserWarning, _PEFT)
            peft_functional.delete_adapter(net, name, prefix="lora_", layer_cls=LoraLayer)
        getattr(net, "peft_config", {}).pop(name, None)
        self._layers = [m for m in net.modules() if isinstance(m, LoraLayer)]


def _compare(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Both sets of names must be equal, and each pair's shapes."""
    if missing := sorted(expected.keys() - found.keys()):
        raise _mismatch("the adapter lacks", missing, sorted(found.keys() - expected.keys()))
    if unexpected := sorted(found.keys() - expected.keys()):
        raise _mismatch("the base model has no place for", unexpected)
    if shapes := [key for key in sorted(found) if found[key].shape != expected[key].shape]:
        raise _mismatch("of another shape", shapes)
    if bad := [key for key in sorted(found) if not torch.isfinite(found[key]).all()]:
        raise PreconditionFailed(
            f"{bad[0]} is not finite: publish weights without NaN or infinity", reason="WEIGHTS_NOT_FINITE"
        )


def _changed(tensors: dict[str, torch.Tensor]) -> set[str]:
    """Modules whose B A is not zero.

    Raises:
        PreconditionFailed: there is none.
    """
    live: dict[str, set[str]] = {}
    for key, tensor in tensors.items():
        module, _, part = key.partition(".lora_")
        if bool((tensor != 0).any()):
            live.setdefault(module, set()).add(part.split(".")[0])
    changed = {m for m, parts in live.items() if {"A", "B"} <= parts or {"embedding_A", "embedding_B"} <= parts}
    if not changed:
        raise PreconditionFailed(
            "the adapter changes nothing: A, B or the scale is zero in every module", reason="POLICY_CHANGES_NOTHING"
        )
    return changed


def _mismatch(what: str, keys: Iterable[str], others: Collection[str] = ()) -> PreconditionFailed:
    names = list(keys)
    also = f"; instead it has {', '.join(list(others)[:3])}" if others else ""
    return PreconditionFailed(
        f"the adapter's keys do not match the base model: {what} {len(names)}, for example "
        f"{', '.join(names[:3])}{also}",
        reason="ADAPTER_KEYS_DO_NOT_MATCH",
        metadata={"count": str(len(names)), "keys": ", ".join(names[:3])},
    )


def _scaled(layer: Any, adapter: str) -> bool:
    scaling = getattr(layer, "scaling", None)  # a number in attention layers, one for each adapter in PEFT's
    return isinstance(scaling, dict) and adapter in scaling


def _has(layer: Any, adapter: str) -> bool:
    return adapter in layer.lora_A or adapter in layer.lora_embedding_A
