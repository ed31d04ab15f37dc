"""The base model for the engine: weights, processor, and facts about its tokens and window."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from sightline.errors import InvalidInput, PreconditionFailed, SightlineError, first_line
from sightline.sampler.manifest import model_digest
from sightline.sampler.types import AdapterPlace
from sightline_chassis.families.auto import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from sightline_chassis.families.pixels import bound_pixels
from sightline_chassis.families.processing import Processing, ProcessorUnusable
from sightline_chassis.families.quantized import Quantization, quantized
from sightline_chassis.families.unread_layers import skip_unread_layers
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from sightline_sampler.engines.local import attention
from sightline_sampler.engines.local.graphs import StepGraphs

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """The base model and its facts.

    Attributes:
        model: a transformers image-text-to-text model, in eval mode.
        processor: its processor.
        processing: how the processor behaves.
        directory: where it was loaded from.
        digest: SHA-256 of its weights.
        device: its device.
        dtype: the type that it computes in.
        eos_ids: ids that end a candidate.
        suppressed: ids that are never sampled (s,): image placeholders, pad, bos, and ids that the tokenizer does not
            have.
        placeholders: ids that stand for an image or a video.
        vocabulary: size of the logits.
        window: maximum positions, prompt and response together.
        text_prefix: module name of the language model ("" if unknown).
        keeps_logits: whether `forward` takes `logits_to_keep`.
        adapter_place: one of its layers that an adapter may change.
        graphs: recordings of decoding steps, on a GPU; with them, attention runs by fused kernels.
    """

    model: Any
    processor: Any
    processing: Processing
    directory: Path
    digest: str
    device: torch.device
    dtype: torch.dtype
    eos_ids: frozenset[int]
    suppressed: torch.Tensor
    placeholders: frozenset[int]
    vocabulary: int
    window: int
    text_prefix: str
    keeps_logits: bool
    adapter_place: AdapterPlace | None
    graphs: StepGraphs | None = None

    @property
    def fused(self) -> bool:
        """Whether attention of rows being decoded runs by fused kernels."""
        return self.graphs is not None and self.graphs.fused

    @property
    def min_rows(self) -> int:
        """Minimum rows of a matrix product. On a CPU, products with fewer rows use other kernels with other last
        bits."""
        return 4 if self.device.type == "cpu" else 1

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer


def model_directory(model: str) -> Path:
    """The directory of a model, given by directory or by its name on the Hugging Face hub.

    Raises:
        PreconditionFailed: MODEL_NOT_FOUND: there is no such directory, and no such model on the hub or in its cache.
    """
    path = Path(model)
    if path.is_dir():
        return path.resolve()
    if path.is_absolute() or model.startswith(".") or model.count("/") > 1:  # not a hub name
        raise PreconditionFailed(_no_directory(model), reason="MODEL_NOT_FOUND")
    from huggingface_hub import snapshot_download  # type: ignore[import-not-found, unused-ignore]

    try:
        return Path(snapshot_download(model, ignore_patterns=["*.bin", "*.pth", "*.gguf", "*.onnx", "original/*"]))
    except Exception as error:  # from the hub, or from its client's HTTP package
        raise PreconditionFailed(
            f"{_no_directory(model)}, and the Hugging Face hub does not provide it ({first_line(error)})",
            reason="MODEL_NOT_FOUND",
        ) from error


def _no_directory(model: str) -> str:
    return f"there is no directory {model}" + ("" if Path(model).is_absolute() else f" below {Path.cwd()}")


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def load_weights(
    directory: Path,
    device: torch.device,
    dtype: str,
    *,
    strict: bool = True,
    quantization: Quantization | None = None,
) -> Any:
    """A model directory as a transformers model in eval mode.

    Args:
        directory: config and weights.
        device: where the weights go.
        dtype: type to cast them to; "auto" is float32 on a CPU, otherwise the checkpoint's.
        strict: whether to refuse tensors that the model has no place for; old checkpoints have some.
        quantization: quantization of the decoder's linear layers; None: none.

    Raises:
        PreconditionFailed: it is an adapter, a tensor is missing, left over or of the wrong shape, or bitsandbytes is
            not installed.
    """
    if (directory / "adapter_config.json").exists():  # transformers would load the base model that it names
        raise PreconditionFailed(f"{directory} contains an adapter, not a whole model", reason="WEIGHTS_DO_NOT_FIT")
    wanted: Any = _DTYPES.get(dtype, "auto" if device.type != "cpu" else torch.float32)
    held = {}
    if quantization is not None:
        if wanted == "auto":
            wanted = torch.bfloat16
        held = quantized(directory, wanted, device)
    model, info = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=wanted, output_loading_info=True, local_files_only=True, ignore_mismatched_sizes=True, **held
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found := sorted(str(key) for key in info.get(what) or ()):
            if what == "unexpected_keys" and not strict:
                logger.warning("%s holds %d tensors that are not used: %s", directory, len(found), ", ".join(found[:3]))
                continue
            raise PreconditionFailed(
                f"{directory} does not contain the weights that its config describes: {len(found)} "
                f"{what.replace('_', ' ')}, "
                f"for example {', '.join(found[:3])}",
                reason="WEIGHTS_DO_NOT_FIT",
                metadata={what: ", ".join(found[:3])},
            )
    skip_unread_layers(model)
    model.eval().requires_grad_(False)
    return model if held else model.to(device)


def load_processor(directory: Path) -> Any:
    """The processor of a model that transformers supports.

    Raises:
        PreconditionFailed: transformers does not support the model or its processor, or they cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds of errors
        raise _not_loaded(directory, error) from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise PreconditionFailed(
            f"the model {directory} has a {type(config).__name__}, "
            f"which is not an image-text-to-text model of transformers {transformers.__version__}",
            reason="MODEL_TAKES_NO_IMAGES",
        )
    try:
        processor = AutoProcessor.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise PreconditionFailed(
            f"the processor of {directory} cannot be loaded: {type(error).__name__}: {first_line(error)}",
            reason="PROCESSOR_UNUSABLE",
        ) from error
    if getattr(processor, "image_processor", None) is None:
        raise PreconditionFailed(
            f"{directory} has no image processor (its AutoProcessor is a {type(processor).__name__})",
            reason="PROCESSOR_UNUSABLE",
        )
    return processor


def _not_loaded(directory: Path, error: Exception) -> PreconditionFailed:
    said = f"the model {directory} cannot be loaded: "
    try:
        config = json.loads((directory / "config.json").read_bytes())
        kind, brings = config["model_type"], "auto_map" in config
    except (OSError, ValueError, KeyError, TypeError):
        kind, brings = None, False
    if kind is None or kind in CONFIG_MAPPING:
        return PreconditionFailed(f"{said}{type(error).__name__}: {first_line(error)}", reason="MODEL_UNREADABLE")
    code = ", and code inside a checkpoint is never run" if brings else ""
    return PreconditionFailed(
        f"{said}transformers {transformers.__version__} knows no model type {kind!r}{code}"
        + ("; convert it with `sightline convert`" if kind == "mobilevlm" else ""),
        reason="MODEL_NOT_TRANSFORMERS",
    )


def load_base(
    model: str,
    *,
    device: str,
    dtype: str,
    chat_template: Path | None,
    pixels: tuple[int | None, int | None] = (None, None),
    quantization: Quantization | None = None,
    graphs: bool = True,
) -> BaseModel:
    """Load the base model.

    Args:
        model: directory or hub name.
        device: "auto", "cpu", "cuda", "cuda:1" ...
        dtype: "auto" (float32 on a CPU, otherwise the checkpoint's type) or a type's name.
        chat_template: a Jinja file, for models without a template.
        pixels: minimum and maximum pixels of an image; None is the model's own.
        quantization: quantization of the decoder's linear layers.
        graphs: on a GPU, decode by fused kernels and CUDA graphs.

    Raises:
        PreconditionFailed: it does not exist, can't be read, or is of a kind that this engine can't decode.
    """
    directory = model_directory(model)
    try:
        return _load(
            directory,
            device=device,
            dtype=dtype,
            chat_template=chat_template,
            pixels=pixels,
            quantization=quantization,
            graphs=graphs,
        )
    except SightlineError:
        raise
    except Exception as error:  # transformers, a processor or a damaged file may raise anything
        raise PreconditionFailed(
            f"the model {directory} cannot be loaded: {type(error).__name__}: {first_line(error)}",
            reason="MODEL_UNREADABLE",
        ) from error


def _load(
    directory: Path,
    *,
    device: str,
    dtype: str,
    chat_template: Path | None,
    pixels: tuple[int | None, int | None],
    quantization: Quantization | None,
    graphs: bool,
) -> BaseModel:
    processor = load_processor(directory)
    accepted = _inputs(directory)
    if chat_template is not None:
        processor.chat_template = chat_template.read_text(encoding="utf-8")
    if not getattr(processor, "chat_template", None):
        raise PreconditionFailed(
            f"{directory} has no chat template: name a Jinja file in engine.chat_template", reason="NO_CHAT_TEMPLATE"
        )
    place = pick_device(device)
    net = load_weights(directory, place, dtype, strict=False, quantization=quantization)
    attention.register(place)
    net.set_attn_implementation(attention.NAME)
    try:
        bound_pixels(processor, *pixels)
        processing = Processing(processor, accepted)
    except ProcessorUnusable as error:
        raise PreconditionFailed(f"{directory} cannot be sampled: {error}", reason="PROCESSOR_UNUSABLE") from error
    text = net.config.get_text_config()
    eos = _eos_ids(net, processor.tokenizer)
    kinds = ("image", "video", "audio")
    placeholders = _placeholders(net.config) | _ids(*(getattr(processor, f"{kind}_token_ids", None) for kind in kinds))
    vocabulary = int(net.get_output_embeddings().weight.shape[0])
    never = placeholders | _bos_and_pad(net, processor.tokenizer) | set(range(len(processor.tokenizer), vocabulary))
    return BaseModel(
        model=net,
        processor=processor,
        processing=processing,
        directory=directory,
        digest=model_digest(directory),
        device=place,
        dtype=net.dtype,
        eos_ids=frozenset(eos),
        suppressed=torch.tensor(sorted(i for i in never - eos if i < vocabulary), dtype=torch.long, device=place),
        placeholders=frozenset(placeholders),
        vocabulary=vocabulary,
        window=_window(text),
        text_prefix=_name_of(net, net.get_decoder()),
        keeps_logits="logits_to_keep" in accepted,
        adapter_place=_adapter_place(net, net.get_decoder()),
        graphs=StepGraphs.of(place, net.dtype) if graphs else None,
    )


def _inputs(directory: Path) -> Mapping[str, inspect.Parameter]:
    """What the model's forward takes.

    Raises:
        PreconditionFailed: ARCHITECTURE_UNSUPPORTED, it needs more with every token than its id: a response is decoded
            token by token, with nothing but ids, positions and what was kept of the prompt.
    """
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    found = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    kinds = found if isinstance(found, tuple) else (found,)
    kind = next((each for each in kinds if each.__name__ in (config.architectures or ())), kinds[0])
    accepted = inspect.signature(kind.forward).parameters
    needed = [name for name, one in accepted.items() if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    if needed := [name for name in needed if name not in ("self", "input_ids")]:
        raise PreconditionFailed(
            f"{kind.__name__} cannot run in this engine: it wants {' and '.join(needed)} with every token",
            reason="ARCHITECTURE_UNSUPPORTED",
        )
    return accepted


def _ids(*values: Any) -> set[int]:
    found: set[int] = set()
    for value in values:
        if isinstance(value, int):
            found.add(value)
        elif isinstance(value, list | tuple | set):
            found.update(v for v in value if isinstance(v, int))
    return {i for i in found if i >= 0}


def _eos_ids(model: Any, tokenizer: Any) -> set[int]:
    text = model.config.get_text_config()
    generation = getattr(model, "generation_config", None)
    ids = _ids(getattr(generation, "eos_token_id", None), getattr(text, "eos_token_id", None), tokenizer.eos_token_id)
    if not ids:
        raise InvalidInput(
            "the model's config names no end token: set eos_token_id in its generation_config.json",
            reason="NO_END_TOKEN",
        )
    return ids


def _bos_and_pad(model: Any, tokenizer: Any) -> set[int]:
    text, generation = model.config.get_text_config(), getattr(model, "generation_config", None)
    names = ("bos_token_id", "pad_token_id")
    return _ids(*(getattr(source, name, None) for source in (text, generation, tokenizer) for name in names))


def _placeholders(config: Any) -> set[int]:
    """Every id that the config names for an image, video or sound: `image_token_id`, `vision_start_token_id`, ..."""
    names = {*vars(config), *getattr(type(config), "attribute_map", {})}
    words = ("image", "video", "vision", "audio", "boi", "eoi")
    return _ids(
        *(
            getattr(config, name, None)
            for name in names
            if name.endswith(("token_id", "token_index")) and any(word in name for word in words)
        )
    )


def _window(text: Any) -> int:
    """Maximum positions of the model. Beyond a sliding window the row cache would show too much, so it ends there."""
    window = int(getattr(text, "max_position_embeddings", None) or 1 << 20)
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if "chunked_attention" in kinds:
        raise PreconditionFailed(
            "this engine cannot decode layers of type chunked_attention", reason="ARCHITECTURE_UNSUPPORTED"
        )
    sliding = getattr(text, "sliding_window", None)
    uses = "sliding_attention" in kinds or (
        getattr(text, "layer_types", None) is None and getattr(text, "use_sliding_window", True)
    )
    return min(window, int(sliding)) if sliding and uses else window


def _adapter_place(net: Any, decoder: Any) -> AdapterPlace | None:
    """A linear layer of the language model: a projection of a query if there is one."""
    inside = {id(module) for module in decoder.modules()}
    found = [
        (not name.endswith("q_proj"), number, AdapterPlace(name, module.out_features, module.in_features))
        for number, (name, module) in enumerate(net.named_modules())
        if isinstance(module, torch.nn.Linear) and id(module) in inside
    ]
    return min(found, key=lambda one: one[:2])[-1] if found else None


def _name_of(model: Any, module: Any) -> str:
    return next((name for name, candidate in model.named_modules() if candidate is module and name), "")
