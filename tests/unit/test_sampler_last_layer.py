"""A prompt's pass without what no logit needs in the last layer: the same bits, and only where they are the same."""

from pathlib import Path
from typing import Any

import families
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from sightline.sampler.turns import user_turn
from sightline_sampler.engines.local import selfcheck
from sightline_sampler.engines.local.last_layer import NarrowLayer
from sightline_sampler.engines.local.model import BaseModel, load_base
from sightline_sampler.engines.local.prefill import ImageFeatures, Prefiller
from sightline_sampler.engines.local.prompts import Prepared, PromptBuilder


def loaded(directory: Path, name: str, dtype: str = "float32") -> BaseModel:
    template = families.FAMILIES[name].template
    directory.mkdir(exist_ok=True)
    if template:
        (directory / "template.jinja").write_text(template)
    return load_base(
        str(families.make(directory / "model", name)),
        device="cpu",
        dtype=dtype,
        chat_template=str(directory / "template.jinja") if template else None,
    )


def prepared(base: BaseModel, count: int) -> list[Prepared]:
    builder = PromptBuilder(base)
    return [
        builder.prepare(user_turn(selfcheck.QUESTION, 1), [selfcheck.blocks(i, (96, 96))], str(i)) for i in range(count)
    ]


def logits(base: BaseModel, prefiller: Prefiller, prompts: list[Prepared]) -> torch.Tensor:
    with torch.inference_mode():
        return prefiller.run(base.model, prompts, 0).logits


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_the_self_check_narrows_the_last_layer_and_all_bits_stay(name: str, tmp_path: Path) -> None:
    base = loaded(tmp_path, name)
    whole, narrow = (Prefiller(base, ImageFeatures(1 << 24)) for _ in range(2))
    selfcheck.check(base, PromptBuilder(base), narrow)
    assert narrow.last_layer is not None
    whole.sharing = narrow.sharing
    layer: Any = base.model.get_decoder().layers[-1]
    seen: list[int] = []
    layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    for count in (1, 2, 5):
        prompts = prepared(base, count)
        seen.clear()
        found = logits(base, narrow, prompts)
        assert seen == [4]
        assert torch.equal(found, logits(base, whole, prompts))
        assert seen[1] == len(prompts[0].ids)


def test_an_adapter_on_the_layer_keeps_its_bits(tmp_path: Path) -> None:
    base = loaded(tmp_path, "llava")
    prefiller = Prefiller(base, ImageFeatures(1 << 24))
    selfcheck.check(base, PromptBuilder(base), prefiller)
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=r".*language_model.*\.(q_proj|o_proj|up_proj|down_proj)", init_lora_weights=False)
    inject_adapter_in_model(lora, base.model)
    prompts = prepared(base, 2)
    layer, found = prefiller.last_layer, logits(base, prefiller, prompts)
    assert layer is not None
    prefiller.last_layer = None
    assert torch.equal(found, logits(base, prefiller, prompts))


def test_half_precision_and_layers_with_other_parts_stay_whole(tmp_path: Path) -> None:
    assert NarrowLayer.of(loaded(tmp_path / "half", "llava", "bfloat16")) is None
    base = loaded(tmp_path / "other", "llava")
    base.model.get_decoder().layers[-1].mlp = torch.nn.Identity()
    assert NarrowLayer.of(base) is None
