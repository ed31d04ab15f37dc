"""Checkpoints as released by their authors, converted once to open_clip models by mapping their keys.

    pickscore   a CLIPModel of transformers (PickScore_v1): a directory or a hub name
    hpsv2       HPS_v2.1_compressed.pt: open_clip's own keys under `state_dict`
    longclip    longclip-B.pt, longclip-L.pt: OpenAI's keys, 248 positions in two tables

The result is in the user's cache (`$XDG_CACHE_HOME/sightline/models`), named by the SHA-256 of the checkpoint, so that
it is made once; then it is served like any other model. Weights are read without unpickling (`weights_only`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline.errors import PreconditionFailed
from sightline_chassis.shipped import model_place
from sightline_chassis.tensor_file import read_tensors

from sightline_scorer.triton.card import sha256_of

_FORMAT = 1
_OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
_KEPT = 20
"""Positions that Long-CLIP keeps from CLIP; the rest are in its second table."""
_WEIGHTS = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")

State = dict[str, Any]


def open_clip_directory(kind: str, source: str, architecture: str | None = None) -> Path:
    """The open_clip model of a released checkpoint; made unless it exists.

    Args:
        kind: pickscore, hpsv2 or longclip.
        source: a file, a directory or a hub name.
        architecture: for a checkpoint whose keys do not tell it; an open_clip name.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        PreconditionFailed: CHECKPOINT_UNKNOWN: it is not of this kind.
    """
    file = _file(kind, source)
    digest = sha256_of(file)
    name = f"{kind}-{hashlib.sha256(f'{_FORMAT} {architecture} {digest}'.encode()).hexdigest()[:32]}"
    target = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sightline/models" / name
    if not target.is_dir():
        _make(kind, file, architecture, target)
    return target


def _make(kind: str, file: Path, architecture: str | None, target: Path) -> None:
    from safetensors.torch import save_file

    try:
        config, state = _MAKERS[kind](_read(file), file, architecture)
    except (KeyError, ValueError, AttributeError) as error:
        raise PreconditionFailed(
            f"{file} is not a checkpoint of kind {kind}: {type(error).__name__}: {error}", reason="CHECKPOINT_UNKNOWN"
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
    try:
        (aside / "open_clip_config.json").write_text(json.dumps(config, indent=1))
        save_file({key: value.contiguous() for key, value in state.items()}, aside / "open_clip_model.safetensors")
        aside.chmod(0o755)
        if not target.is_dir():
            aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _file(kind: str, source: str) -> Path:
    """The weights' file."""
    place = Path(model_place(source).removeprefix("local-dir:"))
    if place.is_file():
        return place
    if not place.is_dir() and kind == "pickscore":
        from huggingface_hub import snapshot_download

        place = Path(snapshot_download(source.removeprefix("hf-hub:"), allow_patterns=["config.json", *_WEIGHTS]))
    for name in _WEIGHTS:
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(f"{source} is not a checkpoint of kind {kind}: name its weights' file, or its directory")


def _read(file: Path) -> State:
    found: Any = read_tensors(file)
    return dict(found.get("state_dict", found))


def pickscore(state: State, file: Path, architecture: str | None) -> tuple[dict[str, Any], State]:
    """A transformers CLIPModel, with config.json beside the weights."""
    from transformers import CLIPConfig

    return clip_of_transformers(CLIPConfig.from_pretrained(file.parent).to_dict(), state)


def clip_of_transformers(config: Mapping[str, Any], state: State) -> tuple[dict[str, Any], State]:
    """open_clip's configuration and weights of a CLIPModel."""
    text, vision = config["text_config"], config["vision_config"]
    model: dict[str, Any] = {
        "embed_dim": config["projection_dim"],
        "vision_cfg": {
            "image_size": vision["image_size"],
            "layers": vision["num_hidden_layers"],
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "patch_size": vision["patch_size"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
        },
    }
    if text["hidden_act"] == "quick_gelu":
        model["quick_gelu"] = True
    elif text["hidden_act"] != "gelu":
        raise ValueError(f"hidden_act {text['hidden_act']!r} is neither gelu nor quick_gelu")
    return {"model_cfg": model, "preprocess_cfg": dict(_OPENAI)}, clip_keys(state)


def clip_keys(state: State) -> State:
    """transformers' CLIPModel with open_clip's keys: query, key and value are joined, projections transposed."""
    import torch

    made: State = {
        "logit_scale": state["logit_scale"],
        "visual.proj": state["visual_projection.weight"].T,
        "text_projection": state["text_projection.weight"].T,
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    parts |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for ours, theirs in (("visual.transformer.resblocks", "vision_model"), ("transformer.resblocks", "text_model")):
        layers = {int(key.split(".")[3]) for key in state if key.startswith(f"{theirs}.encoder.layers.")}
        for number in layers:
            there, here = f"{theirs}.encoder.layers.{number}", f"{ours}.{number}"
            norms |= {f"{here}.{part}": f"{there}.{name}" for part, name in parts.items()}
            for kind in ("weight", "bias"):
                made[f"{here}.attn.in_proj_{kind}"] = torch.cat(
                    [state[f"{there}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                )
    for here, there in norms.items():
        made |= {f"{here}.{kind}": state[f"{there}.{kind}"] for kind in ("weight", "bias")}
    return made


def hpsv2(state: State, file: Path, architecture: str | None) -> tuple[dict[str, Any], State]:
    """HPSv2's weights, a ViT-H-14. Its pictures are padded to a square, not cropped."""
    import open_clip

    name = architecture or "ViT-H-14"
    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"open_clip has no architecture {name!r}: use one of open_clip.list_models()")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    preprocess = {**_OPENAI, "resize_mode": "longest", "fill_color": 0}
    return {"model_cfg": config, "preprocess_cfg": preprocess}, state


def longclip(state: State, file: Path, architecture: str | None) -> tuple[dict[str, Any], State]:
    """Long-CLIP's weights: the first 20 positions of one table, the rest of the other; sizes from the shapes."""
    import torch

    state = {key: value for key, value in state.items() if key not in ("input_resolution", "context_length")}
    state.pop("vocab_size", None)
    first, rest = state["positional_embedding"], state.pop("positional_embedding_res")
    state["positional_embedding"] = torch.cat([first[:_KEPT], rest[_KEPT:]])
    width, patch = state["visual.conv1.weight"].shape[0], state["visual.conv1.weight"].shape[-1]
    patches = state["visual.positional_embedding"].shape[0] - 1
    vocabulary, text_width = state["token_embedding.weight"].shape
    config = {
        "embed_dim": state["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": round(patches**0.5) * patch,
            "layers": _layers(state, "visual.transformer.resblocks."),
            "width": width,
            "patch_size": patch,
        },
        "text_cfg": {
            "context_length": len(first),
            "vocab_size": vocabulary,
            "width": text_width,
            "heads": text_width // 64,
            "layers": _layers(state, "transformer.resblocks."),
        },
    }
    return {"model_cfg": config, "preprocess_cfg": dict(_OPENAI)}, state


def _layers(state: State, prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix))


_MAKERS = {"pickscore": pickscore, "hpsv2": hpsv2, "longclip": longclip}
RELEASED = tuple(_MAKERS)
"""Kinds whose checkpoints are converted to open_clip models."""
