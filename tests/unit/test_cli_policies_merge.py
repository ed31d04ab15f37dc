"""`sightline policies merge`: the checkpoint answers as the adapter does."""

import json
from pathlib import Path
from unittest.mock import ANY

import families
import numpy as np
import peft
import pytest
import torch
from dpo_models import dpo_recipe
from engine_mind import Mind
from engine_trainer import IMAGE, rendered
from sampler_models import make_adapter, make_llava, seal
from sightline.sampler import policy_dirname, verify
from sightline_cli.main import app
from sightline_trainer.runs import RunDirectory
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("merge") / "base")


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["policies", "merge", *map(str, arguments)])
    return result.exit_code, result.output


def logprobs(mind: Mind, model: torch.nn.Module) -> np.ndarray:
    """Of every next token, (positions, vocabulary)."""
    inputs = mind.prepare(rendered(mind), [IMAGE], special=True)
    with torch.no_grad():
        return model.eval()(**inputs).logits[0].log_softmax(-1).numpy()


def test_a_merged_checkpoint_has_the_adapters_log_probs_and_its_lineage(base: Path, tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    policy = make_adapter(policies, base, 3, parent_version=2, run_id="run", iteration=3)
    assert command(tmp_path, 3, "--to", tmp_path / "merged", "--base", base)[0] == 0

    mind = Mind(base)
    plain = LlavaForConditionalGeneration.from_pretrained(base)
    adapted = peft.PeftModel.from_pretrained(LlavaForConditionalGeneration.from_pretrained(base), policy)
    merged = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    expected = logprobs(mind, adapted)
    assert np.abs(logprobs(mind, merged) - expected).max() < 1e-4
    assert np.abs(logprobs(mind, plain) - expected).max() > 0.1

    manifest = verify(tmp_path / "merged")
    assert (manifest.kind, manifest.version, manifest.parent_version) == ("merged", 3, 2)
    assert (manifest.run_id, manifest.iteration) == ("run", 3)
    assert "adapter_model.safetensors" not in manifest.files
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(manifest.files)


def test_a_merged_checkpoint_shows_its_prompts_as_the_run_did(tmp_path: Path) -> None:
    base = families.make(tmp_path / "base", "qwen2_vl")
    own = AutoProcessor.from_pretrained(base)
    # As checkpoints on the hub have them, which is read before the newer files.
    own.image_processor.save_pretrained(base)
    (base / "chat_template.json").write_text(json.dumps({"chat_template": own.chat_template}))
    run = tmp_path / "run"
    tensors = AutoModelForImageTextToText.from_pretrained(base)
    policy = run / "policies" / policy_dirname(1)
    peft.get_peft_model(tensors, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(policy)
    seal(policy, base, 1, "lora")
    template = own.chat_template.replace("helpful", "terse")
    shown = {"chat_template": template, "min_pixels": 512, "max_pixels": 4096}
    RunDirectory(run).open(dpo_recipe(base).model_copy(update=shown))
    assert command(run, 1, "--to", tmp_path / "merged") == (0, ANY)
    merged = AutoProcessor.from_pretrained(tmp_path / "merged")
    assert merged.chat_template == template != own.chat_template
    assert merged.image_processor.size == {"shortest_edge": 512, "longest_edge": 4096} != own.image_processor.size
    assert verify(tmp_path / "merged").kind == "merged"


def test_what_cannot_be_merged_is_said_and_leaves_nothing(base: Path, tmp_path: Path) -> None:
    policy = make_adapter(tmp_path / "policies", base, 1)
    to = tmp_path / "merged"
    code, said = command(tmp_path, 2, "--to", to, "--base", base)
    assert (code, "no policy 2" in said) == (2, True)
    code, said = command(tmp_path, 1, "--to", to)
    assert (code, "--base" in said) == (2, True)
    code, said = command(tmp_path, 1, "--to", to, "--base", make_llava(tmp_path / "other", seed=1))
    assert (code, "was trained on a model" in said and "has another" in said) == (2, True)
    code, said = command(tmp_path, 1, "--to", tmp_path / "policies", "--base", base)
    assert (code, "already exists" in said) == (2, True)
    config = json.loads((policy / "adapter_config.json").read_text())
    (policy / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    code, said = command(tmp_path, 1, "--to", to, "--base", base)
    assert (code, "adapter_config.json" in said) == (1, True)
    assert {each.name for each in tmp_path.iterdir()} == {"policies", "other"}
