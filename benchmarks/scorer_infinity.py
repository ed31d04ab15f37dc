"""The peer: infinity-emb with the same weights, if it is installed.

It serves embeddings, not scores: one call embeds the image, another the texts, and the caller computes the cosine. It
loads transformers models, so the open_clip weights are first written as a CLIPModel. Tests check that both give the
same embeddings (`tests/unit/test_scorer_benchmark.py`). Its engine runs in this process without its HTTP server, which
favours it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from harness import Sample
from scorer_work import Request


def installed() -> bool:
    """Whether infinity-emb is installed."""
    return find_spec("infinity_emb") is not None


class Infinity:
    """infinity's engine with a model written by `as_transformers`."""

    def __init__(self, directory: Path) -> None:
        from infinity_emb import AsyncEmbeddingEngine, EngineArgs
        from transformers import CLIPModel

        # infinity 0.0.78 expects transformers 4, whose methods return a tensor; those of 5 return it inside an output.
        for name in ("get_text_features", "get_image_features"):
            setattr(CLIPModel, name, _pooled(getattr(CLIPModel, name)))
        arguments = EngineArgs(model_name_or_path=str(directory), engine="torch", device="cpu", model_warmup=False)
        self._engine = AsyncEmbeddingEngine.from_args(arguments)

    def turn(self, requests: Sequence[Request], concurrency: int) -> Sample:
        """Send all requests, this many at a time."""
        cpu, wall = time.process_time(), time.perf_counter()
        asyncio.run(self._all(requests, concurrency))
        return Sample(time.perf_counter() - wall, time.process_time() - cpu)

    async def _all(self, requests: Sequence[Request], concurrency: int) -> None:
        import numpy as np

        todo = iter(requests)

        async def worker() -> None:
            for request in todo:
                (images, _), (texts, _) = await asyncio.gather(
                    self._engine.image_embed(images=[request.image]), self._engine.embed(sentences=request.texts)
                )
                np.stack(texts) @ images[0]

        async with self._engine:
            await asyncio.gather(*(worker() for _ in range(concurrency)))


def _pooled(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def tensor(*args: Any, **kwargs: Any) -> Any:
        return getattr(found := method(*args, **kwargs), "pooler_output", found)

    return tensor


def as_transformers(directory: Path, out: Path) -> Path:
    """Write an open_clip model of the plain ViT shape as a CLIPModel of transformers, with its tokenizer.

    Raises ValueError for another shape.
    """
    import open_clip
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    config = json.loads((directory / "open_clip_config.json").read_text())["model_cfg"]
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision or "hf_model_name" in text or config.get("custom_text"):
        raise ValueError(f"{directory} is not a plain CLIP: only a ViT with CLIP's own text tower can be written")
    model = open_clip.create_model(f"local-dir:{directory}").eval()
    act = "quick_gelu" if config.get("quick_gelu") else "gelu"
    target = CLIPModel(
        CLIPConfig(
            projection_dim=config["embed_dim"],
            vision_config={
                "hidden_size": vision["width"],
                "intermediate_size": 4 * vision["width"],
                "num_hidden_layers": vision["layers"],
                "num_attention_heads": vision["width"] // vision.get("head_width", 64),
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
                "hidden_act": act,
                "projection_dim": config["embed_dim"],
            },
            text_config={
                "hidden_size": text["width"],
                "intermediate_size": 4 * text["width"],
                "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"],
                "vocab_size": text["vocab_size"],
                "max_position_embeddings": text["context_length"],
                "hidden_act": act,
                "projection_dim": config["embed_dim"],
                "bos_token_id": 49406,
                "eos_token_id": 49407,
            },
        )
    ).eval()
    missing, unexpected = target.load_state_dict(_renamed(model.state_dict()), strict=False)
    if unexpected or any("position_ids" not in name for name in missing):
        raise ValueError(f"{directory}: parameters without a counterpart: {missing}, {unexpected}")
    shutil.rmtree(out, ignore_errors=True)
    target.save_pretrained(out)
    size = vision["image_size"]
    CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, resample=3
    ).save_pretrained(out)
    _tokenizer(out, CLIPTokenizer, text["context_length"])
    return out


def _renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's parameters by the names of transformers."""
    found = {
        "logit_scale": state["logit_scale"],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.final_layer_norm.weight": state["ln_final.weight"],
        "text_model.final_layer_norm.bias": state["ln_final.bias"],
        "text_projection.weight": state["text_projection"].T.contiguous(),
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "vision_model.pre_layrnorm.weight": state["visual.ln_pre.weight"],
        "vision_model.pre_layrnorm.bias": state["visual.ln_pre.bias"],
        "vision_model.post_layernorm.weight": state["visual.ln_post.weight"],
        "vision_model.post_layernorm.bias": state["visual.ln_post.bias"],
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
    }
    for theirs, ours in (("transformer.resblocks.", "text_model"), ("visual.transformer.resblocks.", "vision_model")):
        for name, value in state.items():
            if not name.startswith(theirs):
                continue
            layer, _, part = name.removeprefix(theirs).partition(".")
            place = f"{ours}.encoder.layers.{layer}."
            kind = part.rpartition(".")[2].removeprefix("in_proj_")
            if part.startswith("attn.in_proj_"):
                for head, piece in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
                    found[f"{place}self_attn.{head}.{kind}"] = piece.contiguous()
            else:
                stem = part.rpartition(".")[0]
                found[f"{place}{_PARTS[stem]}.{kind}"] = value
    return found


_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _tokenizer(out: Path, kind: Any, window: int) -> None:
    """CLIP's tokenizer from the vocabulary that open_clip brings."""
    from open_clip.tokenizer import SimpleTokenizer

    ours = SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): index for token, index in ours.encoder.items()}
    merges = ["#version: 0.2", *(" ".join(pair) for pair in ours.bpe_ranks)]
    (out / "vocab.json").write_text(json.dumps(vocabulary))
    (out / "merges.txt").write_text("\n".join(merges) + "\n")
    kind(str(out / "vocab.json"), str(out / "merges.txt"), model_max_length=window).save_pretrained(out)
