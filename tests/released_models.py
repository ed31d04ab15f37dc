"""Released models: small checkpoints with random weights in the forms in which PickScore, HPSv2, Long-CLIP, ImageReward
and LAION's aesthetic predictor are released, and the reference arithmetic of each, apart from ours."""

import itertools
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
    """Random weights that distinguish texts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def pickscore(directory: Path, *, full: bool = False) -> Any:
    """PickScore's form: a CLIPModel of transformers; in the true shape (ViT-H/14) if `full`. Returns the model."""
    from transformers import CLIPConfig, CLIPModel

    def sizes(width: int, layers: int, heads: int) -> dict[str, Any]:
        found = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
        return found | {"num_attention_heads": heads, "projection_dim": 1024 if full else 64, "hidden_act": "gelu"}

    text = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
    text |= sizes(1024, 24, 16) if full else sizes(64, 2, 2)
    vision = {"image_size": 224, "patch_size": 14} if full else {"image_size": 64, "patch_size": 16}
    vision |= sizes(1280, 32, 16) if full else sizes(64, 2, 2)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=text["projection_dim"])
    model = shaken(CLIPModel(config), 1)
    model.save_pretrained(str(directory))
    return model


def pick_scores(model: Any, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """PickScore as its authors compute it: logit_scale.exp() * cosines, [K] of pixels [1, 3, H, W] and ids [K, 77]."""
    with torch.no_grad():
        found = model(input_ids=ids, pixel_values=pixels)
    return found.logits_per_image[0]


def hpsv2(file: Path, *, full: bool = False) -> Any:
    """HPSv2's form: open_clip's weights under `state_dict`, of an architecture `tiny-hps`, or of ViT-H-14 where `full`.
    Answers the model."""
    import open_clip

    if full:
        model = shaken(open_clip.create_model("ViT-H-14"), 2)
        torch.save({"epoch": 1, "state_dict": model.state_dict()}, file)
        return model
    names = file.parent / "tiny-hps.json"
    names.write_text(json.dumps(TINY))
    open_clip.add_model_config(names)
    model = shaken(open_clip.CLIP(**TINY), 2)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, file)
    return model


def longclip(file: Path, *, full: bool = False) -> Any:
    """Long-CLIP's form: OpenAI's keys, two tables of 248 positions; of ViT-L/14 where `full`. Answers the model and its
    two tables."""
    import open_clip

    config = open_clip.get_model_config("ViT-L-14") if full else json.loads(json.dumps(TINY))
    config["text_cfg"] |= {"context_length": 248} if full else {"context_length": 248, "heads": 1}
    config["vision_cfg"]["head_width"] = 64
    model = shaken(open_clip.CLIP(**config, quick_gelu=True), 3)
    state = dict(model.state_dict())
    generator = torch.Generator().manual_seed(4)
    tables = [torch.randn((248, config["text_cfg"]["width"]), generator=generator) * 0.1 for _ in range(2)]
    state["positional_embedding"], state["positional_embedding_res"] = tables
    torch.save(state, file)
    return model, tables


def long_text_features(model: Any, tables: Any, ids: torch.Tensor) -> torch.Tensor:
    """Text features as Long-CLIP computes them: both tables, each under its mask."""
    first, rest = tables
    mask = (torch.arange(248) < 20).float()[:, None]
    x = model.token_embedding(ids) + first * mask + rest * (1 - mask)
    causal = torch.full((248, 248), float("-inf")).triu(1)
    for block in model.transformer.resblocks:
        x = block(x, attn_mask=causal)
    x = model.ln_final(x)
    return x[torch.arange(len(ids)), ids.argmax(-1)] @ model.text_projection


def aesthetic_head(file: Path, size: int = 64, seed: int = 5) -> torch.nn.Sequential:
    """LAION's network, with its dropout layers."""
    torch.manual_seed(seed)
    linear, dropout = torch.nn.Linear, torch.nn.Dropout
    net = torch.nn.Sequential(
        linear(size, 1024), dropout(0.2), linear(1024, 128), dropout(0.2), linear(128, 64), dropout(0.1),
        linear(64, 16), linear(16, 1),
    ).eval()  # fmt: skip
    state = {f"layers.{name}": value for name, value in net.state_dict().items()}
    save_file(state, str(file)) if file.suffix == ".safetensors" else torch.save(state, file)
    return net


def imagereward(file: Path, *, full: bool = False) -> dict[str, torch.Tensor]:
    """ImageReward's form: the keys of its checkpoint, random weights; in the true shape where `full`. Answers them."""
    width, depth, inner, patches = (1024, 24, 4096, 197) if full else (64, 2, 128, 17)
    hidden, layers, wide, words = (768, 12, 3072, 30524) if full else (128, 2, 256, 120)
    sizes = (hidden, 1024, 128, 64, 16, 1)
    generator = torch.Generator().manual_seed(6)
    state: dict[str, torch.Tensor] = {}

    def table(name: str, *shape: int) -> None:
        state[name] = torch.randn(shape, generator=generator) * (2 / shape[-1]) ** 0.5

    def dense(name: str, out: int, into: int) -> None:
        table(f"{name}.weight", out, into)
        state[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.05

    def norm(name: str, size: int) -> None:
        state[f"{name}.weight"] = 1 + torch.randn(size, generator=generator) * 0.1
        state[f"{name}.bias"] = torch.randn(size, generator=generator) * 0.1

    seen, read = "blip.visual_encoder", "blip.text_encoder"
    table(f"{seen}.cls_token", 1, 1, width)
    table(f"{seen}.pos_embed", 1, patches, width)
    table(f"{seen}.patch_embed.proj.weight", width, 3, 16, 16)
    state[f"{seen}.patch_embed.proj.bias"] = torch.zeros(width)
    for number in range(depth):
        at = f"{seen}.blocks.{number}"
        for name in ("norm1", "norm2"):
            norm(f"{at}.{name}", width)
        for name, out, into in (("attn.qkv", 3 * width, width), ("attn.proj", width, width)):
            dense(f"{at}.{name}", out, into)
        dense(f"{at}.mlp.fc1", inner, width)
        dense(f"{at}.mlp.fc2", width, inner)
    norm(f"{seen}.norm", width)
    state[f"{read}.embeddings.position_ids"] = torch.arange(512)[None]
    table(f"{read}.embeddings.word_embeddings.weight", words, hidden)
    table(f"{read}.embeddings.position_embeddings.weight", 512, hidden)
    norm(f"{read}.embeddings.LayerNorm", hidden)
    for number in range(layers):
        at = f"{read}.encoder.layer.{number}"
        for name, into in (("attention", hidden), ("crossattention", width)):
            dense(f"{at}.{name}.self.query", hidden, hidden)
            dense(f"{at}.{name}.self.key", hidden, into)
            dense(f"{at}.{name}.self.value", hidden, into)
            dense(f"{at}.{name}.output.dense", hidden, hidden)
            norm(f"{at}.{name}.output.LayerNorm", hidden)
        dense(f"{at}.intermediate.dense", wide, hidden)
        dense(f"{at}.output.dense", hidden, wide)
        norm(f"{at}.output.LayerNorm", hidden)
    for place, (into, out) in zip((0, 2, 4, 6, 7), itertools.pairwise(sizes), strict=True):
        dense(f"mlp.layers.{place}", out, into)
    save_file(state, str(file)) if file.suffix == ".safetensors" else torch.save(state, file)
    return state


def image_rewards(state: dict[str, torch.Tensor], pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """ImageReward as its authors compute it, by transformers' BLIP: [B] of pixels [B, 3, H, W] and ids [B, L]."""
    from transformers import BlipTextConfig, BlipVisionConfig
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    seen, read = "blip.visual_encoder.", "blip.text_encoder."
    renamed = {
        "cls_token": "embeddings.class_embedding",
        "pos_embed": "embeddings.position_embedding",
        "patch_embed.proj": "embeddings.patch_embedding",
        "blocks.": "encoder.layers.",
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.qkv": "self_attn.qkv",
        "attn.proj": "self_attn.projection",
    }
    theirs = {}
    for key, value in state.items():
        if key.startswith(seen):
            name = key.removeprefix(seen)
            for old, new in renamed.items():
                name = name.replace(old, new)
            theirs[name.replace("norm.", "post_layernorm.") if name.startswith("norm.") else name] = value
    width, depth = state[f"{seen}cls_token"].shape[-1], 1 + max(int(k.split(".")[3]) for k in state if "blocks." in k)
    side = round((state[f"{seen}pos_embed"].shape[1] - 1) ** 0.5) * 16
    inner = len(state[f"{seen}blocks.0.mlp.fc1.bias"])
    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 64, image_size=side,
            patch_size=16, intermediate_size=inner, layer_norm_eps=1e-6,
        )
    ).eval()  # fmt: skip
    vision.load_state_dict(theirs)
    words = {k.removeprefix(read): v for k, v in state.items() if k.startswith(read) and "position_ids" not in k}
    count, hidden = words["embeddings.word_embeddings.weight"].shape
    text = BlipTextModel(
        BlipTextConfig(
            vocab_size=count, hidden_size=hidden, encoder_hidden_size=width, num_attention_heads=hidden // 64,
            num_hidden_layers=1 + max(int(k.split(".")[2]) for k in words if "encoder.layer." in k),
            intermediate_size=len(words["encoder.layer.0.intermediate.dense.bias"]),
        ),
        add_pooling_layer=False,
    ).eval()  # fmt: skip
    text.load_state_dict(words)
    with torch.no_grad():
        states = vision(pixels).last_hidden_state
        mark = text(
            ids, attention_mask=(ids != 0).long(), encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long),
        ).last_hidden_state[:, 0]  # fmt: skip
        for place in (0, 2, 4, 6, 7):
            mark = mark @ state[f"mlp.layers.{place}.weight"].T + state[f"mlp.layers.{place}.bias"]
    return (mark[:, 0] - 0.16717362830052426) / 1.0333394966054072


def bert_tokenizer(directory: Path) -> None:
    """A tokenizer of BERT's kind with a few words."""
    from transformers import BertTokenizerFast

    text = "a red square left of blue circle photo the dog and two cats on couch in picture green star ! ? . ,"
    words = text.split()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    table = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{each}" for each in letters)]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.txt").write_text("\n".join(dict.fromkeys(table)))
    BertTokenizerFast(str(directory / "vocab.txt")).save_pretrained(str(directory))
