"""MobileVLM V2: released names are read, and LDPv2 follows the paper."""

import json
import re
from pathlib import Path

import pytest
import torch
from family_words import tokenizer
from PIL import Image
from running import ROOT
from safetensors.torch import save_file
from sightline.errors import InvalidInput
from sightline_chassis.families.auto import AutoModelForImageTextToText, AutoProcessor
from sightline_chassis.families.mobilevlm import MobileVlmProjector
from sightline_chassis.families.mobilevlm_checkpoint import convert
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

TOWER = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 4, "projection_dim": 16,
}  # fmt: skip


def released(directory: Path) -> dict[str, Tensor]:
    """A tiny checkpoint with the released names, made of plain CLIP and Llama; its tensors."""
    torch.manual_seed(0)
    directory.mkdir()
    words = tokenizer(begins=True)
    text = LlamaConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(words)
    )
    decoder, tower = LlamaForCausalLM(text), CLIPVisionModel(CLIPVisionConfig(**TOWER))
    tensors = {name: value.clone() for name, value in decoder.state_dict().items()}
    for name, value in tower.state_dict().items():
        tensors[f"model.vision_tower.vision_tower.vision_model.{name}"] = value.clone()
    tensors["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(65)[None]
    for number, shape in ((0, (24, 16)), (2, (24, 24))):
        tensors[f"model.mm_projector.mlp.mlp.{number}.weight"] = torch.randn(shape) * 0.3
        tensors[f"model.mm_projector.mlp.mlp.{number}.bias"] = torch.randn(24) * 0.1
    tensors["model.mm_projector.peg.peg.0.weight"] = torch.randn(24, 1, 3, 3) * 0.3
    tensors["model.mm_projector.peg.peg.0.bias"] = torch.randn(24) * 0.1
    save_file(tensors, directory / "model.safetensors")
    more = {"model_type": "mobilevlm", "mm_projector_type": "ldpnetv2", "mm_vision_select_layer": -2}
    (directory / "config.json").write_text(json.dumps(text.to_dict() | more))
    words.save_pretrained(directory)
    return tensors


def test_the_projector_is_the_papers(tmp_path: Path) -> None:
    """One image of 4 x 4 patches to 2 x 2 tokens, computed channel by channel."""
    from types import SimpleNamespace

    torch.manual_seed(1)
    sizes = SimpleNamespace(
        text_config=SimpleNamespace(hidden_size=3), vision_config=SimpleNamespace(hidden_size=2), projector_side=2
    )
    projector = MobileVlmProjector(sizes)  # type: ignore[arg-type]
    features = torch.randn(1, 16, 2)
    hidden = torch.nn.functional.gelu(features[0] @ projector.linear_1.weight.T + projector.linear_1.bias)
    hidden = hidden @ projector.linear_2.weight.T + projector.linear_2.bias
    pooled = torch.zeros(2, 2, 3)
    for row in range(2):
        for column in range(2):
            patches = [(2 * row + a) * 4 + 2 * column + b for a in range(2) for b in range(2)]
            pooled[row, column] = hidden[patches].mean(dim=0)
    wanted = torch.zeros(2, 2, 3)
    for row in range(2):
        for column in range(2):
            wanted[row, column] = pooled[row, column] + projector.position.bias
            for a in range(2):
                for b in range(2):  # the kernel's middle is at 1, 1
                    kernel = projector.position.weight[:, 0, 1 + a - row, 1 + b - column]
                    wanted[row, column] += kernel * pooled[a, b]
    torch.testing.assert_close(projector(features)[0], wanted.reshape(4, 3))


def test_a_released_checkpoint_becomes_one_of_transformers(tmp_path: Path) -> None:
    tensors = released(tmp_path / "released")
    convert(tmp_path / "released", tmp_path / "made", tower=TOWER)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "made")
    processor = AutoProcessor.from_pretrained(tmp_path / "made")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a red box"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, images=Image.new("RGB", (90, 40), "red"), return_tensors="pt",
                       add_special_tokens=False)  # fmt: skip
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 16
    with torch.no_grad():
        logits = model(**inputs).logits
        features = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    # The decoder of the released file, fed what the projector says in the placeholders' places.
    plain = LlamaForCausalLM(LlamaConfig.from_pretrained(tmp_path / "released")).eval()
    decoder = {name: value for name, value in tensors.items() if "vision" not in name and "mm_" not in name}
    plain.load_state_dict(decoder)
    ids = inputs["input_ids"][0]
    embedded = plain.model.embed_tokens(ids.clamp(max=plain.config.vocab_size - 1)).detach()
    embedded[ids == model.config.image_token_id] = features
    with torch.no_grad():
        wanted = plain(inputs_embeds=embedded[None]).logits
    known = plain.config.vocab_size
    torch.testing.assert_close(logits[..., :known], wanted, atol=1e-5, rtol=1e-5)
    assert logits[..., known:].abs().max() == 0


def test_what_is_no_mobilevlm_is_said(tmp_path: Path) -> None:
    tensors = released(tmp_path / "released")
    del tensors["model.mm_projector.peg.peg.0.bias"]
    save_file(tensors, tmp_path / "released/model.safetensors")
    with pytest.raises(InvalidInput, match="1 tensors are missing") as caught:
        convert(tmp_path / "released", tmp_path / "made", tower=TOWER)
    assert caught.value.reason == "MODEL_UNKNOWN"
    (tmp_path / "released/config.json").write_text(json.dumps({"mm_projector_type": "ldpnet"}))
    with pytest.raises(InvalidInput, match="ldpnet, not ldpnetv2"):
        convert(tmp_path / "released", tmp_path / "made", tower=TOWER)


def test_everything_loads_models_by_the_classes_that_know_it() -> None:
    auto = re.compile(r"from transformers import [^\n]*Auto(Config|ModelForImageTextToText|Processor)")
    files = [file for file in ROOT.glob("services/*/sightline_*/**/*.py") if file.name != "auto.py"]
    known = [file for file in files if file.name != "mobilevlm.py"]
    assert [str(file) for file in known if auto.search(file.read_text())] == []
