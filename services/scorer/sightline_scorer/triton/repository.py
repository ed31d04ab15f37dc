"""Builds a Triton model repository: two models, `clip_image` and `clip_text`, for each CLIP model, and one for each
model that takes picture and text together.

    repository/
      clip_image/config.pbtxt             clip_image/1/model.py
      clip_text/config.pbtxt              clip_text/1/model.py
      blip_joint__NAME/config.pbtxt       blip_joint__NAME/1/model.py

The embedded Triton gets it in a work directory at every start. A cluster builds it once and mounts it:

    python -m sightline_scorer.triton.repository --model default=ViT-B-32@laion2b_s34b_b79k --copy-weights OUT
    python -m sightline_scorer.triton.repository --config settings.yaml --copy-weights OUT

The second takes models, precisions, batches and graphs from the settings file of the service that will ask.

Further models stand beside the default one as `clip_image__NAME` and `clip_text__NAME`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sightline.errors import PreconditionFailed, SightlineError, first_line
from sightline_chassis.settings import load_settings
from sightline_chassis.shipped import model_place

from sightline_scorer import imagereward
from sightline_scorer.released import RELEASED, open_clip_directory
from sightline_scorer.settings import ModelSettings, ScorerSettings, TritonSettings
from sightline_scorer.triton.card import PARAMETER, TOWERS, ModelCard, sha256_of
from sightline_scorer.vocabularies import tokenizer_facts

LOCAL_DIR = "local-dir:"
CLIP_FILES = ("towers.py", "half.py", "tower_weights.py")
"""What model.py imports for the towers of a CLIP."""
_OF_OTHERS = {"timm", "transformers"}
"""Packages that open_clip may use for a tower."""
_WEIGHTS = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"),
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)
"""The file names that open_clip looks for in a directory, in its order."""


def triton_name(tower: str, model: str, default_model: str, version: int = 1) -> str:
    """Name of the Triton model that holds one tower ("image", "text" or "joint") of a version of a model.

    A new version is beside the previous one until that is drained, so it has its own name.
    """
    name = f"clip_{tower}" if tower in TOWERS else f"blip_{tower}"
    if version > 1:
        return f"{name}__{model}__v{version}"
    return name if model == default_model else f"{name}__{model}"


def describe(name: str, settings: ModelSettings) -> ModelCard:
    """Make the model once on the CPU, let it embed a picture and a text, and record its facts.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: open_clip cannot build the model.
        ValueError: it has no weights: random weights would give scores that look valid.
        PreconditionFailed: MODEL_FAILS_FORWARD: its forward pass raises an error.
    """
    if settings.kind == "imagereward":
        return imagereward.describe(name, settings)
    import open_clip

    from sightline_scorer.triton import tower_weights

    architecture = architecture_of(settings)
    weights = find_weights(architecture, settings.pretrained)
    local_dir = architecture.startswith(LOCAL_DIR)
    try:
        pretrained = None if local_dir else _pretrained(architecture, settings)
        make = partial(open_clip.create_model, architecture, pretrained=pretrained)
        model = tower_weights.unfilled(make, weights)
        if model is None:
            model = make(require_pretrained=True)
        else:
            tower_weights.fill(model, weights, {"logit_scale", "logit_bias"}.__contains__)
    except (OSError, ValueError, RuntimeError):
        raise
    except Exception as error:  # weights formats have their own errors for a damaged file
        raise ValueError(f"{weights} cannot be loaded: {error}") from error
    preprocess = dict(model.visual.preprocess_cfg)
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    tokenizer = open_clip.get_tokenizer(architecture)
    bias = getattr(model, "logit_bias", None)
    return ModelCard(
        name=name,
        kind=settings.kind,
        architecture=architecture,
        local_dir=local_dir,
        weights_path=str(weights),
        weights_digest=sha256_of(weights),
        preprocess=json.loads(json.dumps(preprocess)),
        embedding_size=_embedding_size(name, model, tokenizer, (height, width)),
        image_height=int(height),
        image_width=int(width),
        context_length=int(tokenizer.context_length),
        vocabulary_size=int(getattr(getattr(model, "text", model), "vocab_size", 0)),
        logit_scale=float(model.logit_scale.detach().exp()),
        logit_bias=0.0 if bias is None else float(bias.detach()),
        sigmoid=bias is not None,
        precision=settings.precision,
        needs=sorted(_OF_OTHERS & {type(module).__module__.partition(".")[0] for module in model.modules()}),
        tokenizer=tokenizer_facts(tokenizer, architecture),
        trim_padding=_trims(model),
    )


def architecture_of(settings: ModelSettings) -> str:
    """A model's name for open_clip; a released checkpoint is converted to an open_clip model first.

    Raises as `open_clip_name` and `open_clip_directory`.
    """
    if settings.kind in RELEASED:
        return f"{LOCAL_DIR}{open_clip_directory(settings.kind, settings.source, settings.architecture)}"
    return open_clip_name(settings.source)


def open_clip_name(architecture: str) -> str:
    """The name for open_clip: a plain directory becomes `local-dir:` and its absolute path."""
    if architecture.startswith("hf-hub:"):
        return architecture
    architecture = model_place(architecture)
    path = Path(architecture.removeprefix(LOCAL_DIR))
    if architecture.startswith(LOCAL_DIR) or path.is_dir():
        if not (path / "open_clip_config.json").is_file():
            raise FileNotFoundError(
                f"{path} holds no open_clip_config.json, so it is not an open_clip model: name a directory with "
                "open_clip_config.json and open_clip_model.safetensors, or one of open_clip.list_models()"
            )
        return f"{LOCAL_DIR}{path.resolve()}"
    return architecture


def find_weights(architecture: str, pretrained: str | None) -> Path:
    """The weights file that open_clip loads; downloaded to its cache if it is not on this machine.

    Raises ValueError if there is none.
    """
    if architecture.startswith(LOCAL_DIR):
        weights = _weights_in(Path(architecture.removeprefix(LOCAL_DIR)))
        if weights is None:
            raise ValueError(
                f"{architecture} contains no weights (*.safetensors, *.bin or *.pth): name a place that has them"
            )
        return weights.resolve()
    if pretrained and not architecture.startswith("hf-hub:") and Path(pretrained).is_file():
        return Path(pretrained).resolve()
    from open_clip import factory

    if architecture.startswith("hf-hub:"):
        found = factory.download_pretrained_from_hf(architecture.removeprefix("hf-hub:"))
    elif pretrained and (tag := factory.get_pretrained_cfg(architecture.replace("/", "-"), pretrained)):
        found = factory.download_pretrained(tag)
    else:
        tags = ", ".join(factory.list_pretrained_tags_by_model(architecture.replace("/", "-")))
        raise ValueError(
            f"model {architecture!r} with pretrained={pretrained!r} has no weights: set `pretrained` to a weights file"
            + (f" or one of {tags}" if tags else "; open_clip.list_models() names the architectures")
        )
    if not found:
        raise ValueError(
            f"{architecture} contains no weights (*.safetensors, *.bin or *.pth): name a place that has them"
        )
    return Path(found).resolve()


def _weights_in(folder: Path) -> Path | None:
    """The file that open_clip uses in a directory."""
    found = sorted(file for ending in ("safetensors", "bin", "pth") for file in folder.glob(f"*.{ending}"))
    found.sort(key=lambda file: file.suffix != ".safetensors")
    named = [folder / name for name in _WEIGHTS if folder / name in found]
    return next(iter([*named, *found]), None)


def build(cards: Sequence[ModelCard], default_model: str, out: Path, settings: TritonSettings, *, copy: bool) -> None:
    """Write the repository of `cards` into the directory `out`.

    With `copy`, the weights are copied into it, so that it can be mounted anywhere; otherwise it refers to their path.
    """
    for card in cards:
        for tower in card.towers:
            add(card, tower, triton_name(tower, card.name, default_model), out, settings, copy=copy)


def add(card: ModelCard, tower: str, name: str, out: Path, settings: TritonSettings, *, copy: bool) -> None:
    """Write one tower as the Triton model `name`."""
    version = out / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    for file in ("model.py", "beside.py", *(("blip.py",) if tower == "joint" else CLIP_FILES)):
        shutil.copyfile(here / file, version / file)
    facts = _copy_weights(card, version) if copy else {}
    if not copy and settings.from_one_import and tower in TOWERS:
        other = {"image": "text", "text": "image"}[tower]
        facts[f"{other}_model"] = name.replace(f"clip_{tower}", f"clip_{other}", 1)
    (out / name / "config.pbtxt").write_text(config_pbtxt(name, tower, card, settings, facts))


def config_pbtxt(name: str, tower: str, card: ModelCard, settings: TritonSettings, facts: dict[str, Any]) -> str:
    """The text of one model's config.pbtxt, from the model's real shapes. `facts` overlay the card's.

    There is deliberately no `default_queue_policy`: a timeout or a queue size in it disables Triton's prefetching. Then
    a request that arrives just before the tower waits again is found only by the batcher's 500 ms timer (one call in
    forty, seen with 2.51), and throughput decays (triton-inference-server/server#8870). Instead, the backend bounds the
    queue, and a call that times out is cancelled. Texts may be ragged: requests of several scorers share a batch
    regardless of their lengths, and the model pads them.
    """
    batch = settings.text_batch if tower == "text" else settings.image_batch
    pixels = ("pixels", "TYPE_UINT8", f"3, {card.image_height}, {card.image_width}")
    ids = ("token_ids", "TYPE_INT32", "-1")
    entries = {"image": [pixels], "text": [ids], "joint": [pixels, ids]}[tower]
    output = ("reward", 1) if tower == "joint" else ("embedding", card.embedding_size)
    own = {
        **facts,
        "tower": tower,
        "device": settings.device,
        "threads": settings.threads,
        "gpu_graphs": settings.gpu_graphs,
        "batch": batch,
    }
    parameter = json.dumps(card.to_json(**own))  # a JSON string is a text-format string too
    kind = "KIND_GPU" if settings.device == "cuda" else "KIND_CPU"
    inputs = "\n".join(
        f'input {{ name: "{entry}" data_type: {data_type} dims: [ {dims} ]'
        + (" allow_ragged_batch: true }" if dims == "-1" else " }")
        for entry, data_type, dims in entries
    )
    warm_ups = "\n".join(
        f'model_warmup {{ name: "batch{size}" batch_size: {size} '
        + " ".join(
            f'inputs {{ key: "{entry}" value {{ data_type: {data_type} '
            f"dims: [ {card.context_length if dims == '-1' else dims} ] zero_data: true }} }}"
            for entry, data_type, dims in entries
        )
        + " }"
        for size in sorted({1, batch})
    )
    return f"""\
# Made by sightline_scorer.triton.repository; made again at every start.
name: "{name}"
backend: "python"
max_batch_size: {batch}
{inputs}
output {{ name: "{output[0]}" data_type: TYPE_FP32 dims: [ {output[1]} ] }}
instance_group {{ count: {settings.instances} kind: {kind} }}
dynamic_batching {{ max_queue_delay_microseconds: {settings.queue_delay_microseconds} }}
{warm_ups}
parameters {{ key: "{PARAMETER}" value {{ string_value: {parameter} }} }}
"""


def _pretrained(architecture: str, settings: ModelSettings) -> str | None:
    return None if architecture.startswith("hf-hub:") else settings.pretrained


def _embedding_size(name: str, model: Any, tokenizer: Any, size: tuple[int, int]) -> int:
    """Check both towers by a trial forward pass."""
    import torch

    try:
        with torch.inference_mode():
            model.eval()
            text = int(model.encode_text(tokenizer(["a picture"])).shape[-1])
            image = int(model.encode_image(torch.zeros(1, 3, *size)).shape[-1])
    except Exception as error:
        raise PreconditionFailed(
            f"the model {name} fails its trial forward: {type(error).__name__}: {first_line(error, 500)}",
            reason="MODEL_FAILS_FORWARD",
        ) from error
    if image != text:
        raise PreconditionFailed(
            f"the model {name} embeds pictures in {image} numbers and texts in {text}: they cannot be compared",
            reason="MODEL_FAILS_FORWARD",
        )
    return image


def _trims(model: Any) -> bool:
    """Whether the text tower is open_clip's plain causal one, pooled at the end-of-text token."""
    from open_clip.model import CLIP

    plain = type(model) is CLIP and model.attn_mask is not None
    return plain and model.text_pool_type in ("argmax", "eos")


def _copy_weights(card: ModelCard, version: Path) -> dict[str, Any]:
    """Copy the model beside its model.py as a complete open_clip folder; returns the facts that change."""
    target = version / "weights"
    source = Path(card.weights_path)
    if not card.embedding_size:
        target.mkdir(exist_ok=True)
        shutil.copyfile(source, target / source.name)
        return {"weights_path": f"weights/{source.name}"}
    import open_clip

    if card.local_dir:
        shutil.copytree(source.parent, target, dirs_exist_ok=True)
    else:
        target.mkdir(exist_ok=True)
        shutil.copyfile(source, target / source.name)
        config = {"model_cfg": open_clip.get_model_config(card.architecture), "preprocess_cfg": card.preprocess}
        (target / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    return {"weights_path": f"weights/{source.name}", "local_dir": True}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a model repository for a Triton in a cluster."""
    parser = argparse.ArgumentParser(prog="python -m sightline_scorer.triton.repository", description=main.__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, help="settings file of the scorer, with its models and how they run")
    what.add_argument(
        "--model",
        action="append",
        metavar="NAME=ARCHITECTURE[@PRETRAINED]",
        help="a model; the first is the default. ARCHITECTURE may be a directory",
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], help="where the towers run; default: as in the settings, or auto"
    )
    parser.add_argument(
        "--precision", choices=["fp32", "fp16", "bf16"], default="fp32", help="precision of each --model"
    )
    parser.add_argument("--copy-weights", action="store_true", help="copy the weights into the repository")
    parser.add_argument("out", type=Path, help="directory to write")
    options = parser.parse_args(arguments)
    if options.config is not None:
        settings = load_settings(ScorerSettings, service="scorer", config=options.config)
        models, first, triton = settings.models, settings.first_model, settings.triton
    else:
        models, triton = {}, TritonSettings()
        for entry in options.model:
            name, _, source = entry.partition("=")
            architecture, _, pretrained = source.partition("@")
            models[name] = ModelSettings(
                source=architecture, pretrained=pretrained or None, precision=options.precision
            )
        first = next(iter(models))
    if options.device:
        triton = triton.model_copy(update={"device": options.device})
    try:
        cards = [describe(name, model) for name, model in models.items() if model.kind != "vqa"]
        build(cards, first, options.out, triton, copy=options.copy_weights)
    except (SightlineError, ValueError, OSError) as error:  # a wrong name, or weights that cannot be fetched
        parser.exit(1, f"error: {first_line(error)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
