"""Released models: small checkpoints with random weights in the forms in which PickScore, HPSv2, Long-CLIP and LAION's
aesthetic predictor are released, and the reference arithmetic of each, apart from ours."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TINY = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def shaken(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights that tell texts apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def pickscore(directory: Path) -> Any:
    """PickScore's form: a CLIPModel of transformers. Answers the model."""
    from transformers import CLIPConfig, CLIPModel

    text = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
    vision = {"image_size": 64, "patch_size": 16}
    both = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    both |= {"projection_dim": 64, "hidden_act": "gelu"}
    config = CLIPConfig(text_config=text | both, vision_config=vision | both, projection_dim=64)
    model = shaken(CLIPModel(config), 1)
    model.save_pretrained(str(directory))
    return model


def pick_scores(model: Any, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """As its authors compute it: logit_scale.exp() * cosines, [K] of pixels [1, 3, H, W] and ids [K, 77]."""
    with torch.no_grad():
        found = model(input_ids=ids, pixel_values=pixels)
    return found.logits_per_image[0]


def hpsv2(file: Path) -> Any:
    """HPSv2's form: open_clip's weights under `state_dict`, of an architecture `tiny-hps`. Answers the model."""
    import open_clip

    names = file.parent / "tiny-hps.json"
    names.write_text(json.dumps(TINY))
    open_clip.add_model_config(names)
    model = shaken(open_clip.CLIP(**TINY), 2)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, file)
    return model


def longclip(file: Path) -> Any:
    """Long-CLIP's form: OpenAI's keys, two tables of 248 positions. Answers the model and its two tables."""
    import open_clip

    config = json.loads(json.dumps(TINY))
    config["text_cfg"] |= {"context_length": 248, "heads": 1}
    config["vision_cfg"]["head_width"] = 64
    model = shaken(open_clip.CLIP(**config, quick_gelu=True), 3)
    state = dict(model.state_dict())
    generator = torch.Generator().manual_seed(4)
    tables = [torch.randn((248, 64), generator=generator) * 0.1 for _ in range(2)]
    state["positional_embedding"], state["positional_embedding_res"] = tables
    torch.save(state, file)
    return model, tables


def long_text_features(model: Any, tables: Any, ids: torch.Tensor) -> torch.Tensor:
    """As Long-CLIP computes it: both tables, each under its mask."""
    first, rest = tables
    mask = (torch.arange(248) < 20).float()[:, None]
    x = model.token_embedding(ids) + first * mask + rest * (1 - mask)
    causal = torch.full((248, 248), float("-inf")).triu(1)
    for block in model.transformer.resblocks:
        x = block(x, attn_mask=causal)
    x = model.ln_final(x)
    return x[torch.arange(len(ids)), ids.argmax(-1)] @ model.text_projection


def aesthetic_head(file: Path, size: int = 64) -> torch.nn.Sequential:
    """LAION's network, dropout and all."""
    torch.manual_seed(5)
    linear, dropout = torch.nn.Linear, torch.nn.Dropout
    net = torch.nn.Sequential(
        linear(size, 1024), dropout(0.2), linear(1024, 128), dropout(0.2), linear(128, 64), dropout(0.1),
        linear(64, 16), linear(16, 1),
    ).eval()  # fmt: skip
    state = {f"layers.{name}": value for name, value in net.state_dict().items()}
    save_file(state, str(file)) if file.suffix == ".safetensors" else torch.save(state, file)
    return net
