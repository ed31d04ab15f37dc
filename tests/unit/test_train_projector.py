"""`dpo.train_projector`: the projector is trained and published with the adapter, used in sampling, and merged."""

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from datasets import Dataset
from dpo_models import dpo_recipe
from family_pairs import family_pairs
from plain_model import Plain
from safetensors.torch import load_file, save_file
from sampler_engine import running_engine
from sightline.errors import PreconditionFailed
from sightline.picture_rule import PICTURE_RULE
from sightline.sampler import Policies, PolicyInfo, PolicyManifest
from sightline.sampler.types import Capabilities
from sightline_sampler.engines.base import ScoreWork
from sightline_sampler.engines.remote.merge import merge
from sightline_trainer.dpo.decoder import linear_layers
from sightline_trainer.dpo.projector import projector
from sightline_trainer.dpo.update import Update, update
from sightline_trainer.preflight.model import sizes
from sightline_trainer.preflight.services import sampler
from sightline_trainer.recipe import Recipe
from transformers import AutoModelForImageTextToText

OWN = "model.multi_modal_projector."
DIGEST = "0" * 64


class Version:
    """A lease on a policy."""

    def __init__(self, version: int) -> None:
        self.version = version

    def bind(self) -> int:
        return self.version


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    model = families.make(tmp_path_factory.mktemp("llava") / "model", "llava")
    return model, family_pairs(model, "llava")


def run(model: Path, pairs: Dataset, root: Path, previous: Path | None = None, **dpo: Any) -> Update:
    recipe = dpo_recipe(model, learning_rate=3e-3, epochs=4, batch_size=2, train_projector=True, **dpo)
    return update(
        recipe, pairs, previous=previous, adapter=root / "policy", work=root / "work", seed=0,
        progress=lambda done, total: None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(llava: tuple[Path, Dataset], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Update]:
    root = tmp_path_factory.mktemp("trained")
    return root / "policy", run(*llava, root)


def test_the_projector_is_trained_and_saved_with_the_adapter(
    llava: tuple[Path, Dataset], trained: tuple[Path, Update]
) -> None:
    before = AutoModelForImageTextToText.from_pretrained(llava[0], dtype=torch.float32).state_dict()
    saved = load_file(trained[0] / "adapter_model.safetensors")
    ours = {name.removeprefix("base_model.model."): each for name, each in saved.items() if ".lora_" not in name}
    assert ours.keys() == {name for name in before if name.startswith(OWN)}
    assert all(not torch.equal(each, before[name]) for name, each in ours.items())
    assert trained[1].metrics["changed_tensors"] == 1.0


def test_sampler_and_merged_checkpoint_have_the_updates_log_probs(
    llava: tuple[Path, Dataset], trained: tuple[Path, Update], tmp_path: Path
) -> None:
    """Without the projector they differ, and the base model's stay the same before and after."""
    directory, pairs = trained[0], llava[1]
    merge(directory, llava[0], tmp_path / "merged")
    merged, plain = Plain(tmp_path / "merged", "llava", None), Plain(llava[0], "llava", None)
    manifest, photos = PolicyManifest(1, 0, "lora", DIGEST), families.photos()
    with running_engine(llava[0]) as at:

        def scored(version: int, prompt_id: str, question: str, ids: list[int]) -> np.ndarray:
            work = ScoreWork(at.work(photos[int(prompt_id[1:])], question, 1).asked, ids, Version(version))
            return at.run(at.engine.score(work)).logprobs

        def told(version: int, number: int) -> np.ndarray:
            row = pairs[number]
            return scored(version, row["prompt_id"], row["prompt"][0]["content"], row["chosen_ids"])

        first = told(0, 0)
        staged = at.run(at.engine.stage(directory, manifest))
        saved = load_file(directory / "adapter_model.safetensors")
        assert staged.tensors == len(saved)
        for probe in trained[1].probes:
            asked = probe.prompt_id, probe.prompt, probe.token_ids
            shown = photos[int(probe.prompt_id[1:])], probe.prompt, probe.token_ids
            np.testing.assert_allclose(scored(1, *asked), probe.logprobs, atol=1e-3)
            np.testing.assert_allclose(merged.logprobs(*shown), probe.logprobs, atol=1e-3)
            np.testing.assert_allclose(scored(0, *asked), plain.logprobs(*shown), atol=1e-3)
        assert np.abs(told(1, 0) - first).max() > 1e-2
        np.testing.assert_array_equal(told(0, 0), first)
        base = AutoModelForImageTextToText.from_pretrained(llava[0], dtype=torch.float32).state_dict()
        with_old = {
            name: base[bare].contiguous() if (bare := name.removeprefix("base_model.model.")) in base else each
            for name, each in saved.items()
        }
        (tmp_path / "old").mkdir()
        save_file(with_old, tmp_path / "old/adapter_model.safetensors")
        config = (directory / "adapter_config.json").read_text()
        (tmp_path / "old/adapter_config.json").write_text(config)
        at.run(at.engine.stage(tmp_path / "old", PolicyManifest(2, 0, "lora", DIGEST)))
        assert np.abs(told(2, 0) - told(1, 0)).max() > 1e-3, "a projector that does not matter would prove nothing"
        del with_old[f"base_model.model.{OWN}linear_1.bias"]
        save_file(with_old, tmp_path / "old/adapter_model.safetensors")
        with pytest.raises(PreconditionFailed, match="the adapter lacks 1"):
            at.run(at.engine.stage(tmp_path / "old", PolicyManifest(3, 0, "lora", DIGEST)))
        at.run(at.engine.retire(1))
        np.testing.assert_array_equal(told(0, 0), first)


def test_an_update_goes_on_from_a_projector(
    llava: tuple[Path, Dataset], trained: tuple[Path, Update], tmp_path: Path
) -> None:
    done = run(*llava, tmp_path, previous=trained[0])
    for ours, theirs in zip(done.probes, trained[1].probes, strict=True):
        np.testing.assert_allclose(ours.previous_logprobs, theirs.logprobs, atol=1e-4)


FOUND = {
    "llava_next": ["model.multi_modal_projector"],
    "gemma3": ["model.multi_modal_projector"],
    "idefics3": ["model.connector"],
    "internvl": ["model.multi_modal_projector"],
}


@pytest.mark.parametrize("name", [*FOUND, "qwen2_vl"])
def test_the_projector_is_what_stands_between_tower_and_decoder(name: str) -> None:
    model, _ = families.FAMILIES[name].build()
    if name in FOUND:
        assert projector(model) == FOUND[name]
        assert not any(each.startswith(FOUND[name][0]) for each in linear_layers(model))
    else:
        with pytest.raises(PreconditionFailed, match="part of the vision tower") as caught:
            projector(model)
        assert caught.value.reason == "PROJECTOR_NOT_FOUND"


@pytest.mark.field
def test_what_goes_with_no_projector_is_refused() -> None:
    tree = {"name": "test", "model": "m", "data": {"train": "a", "test": "b"}}
    with pytest.raises(ValueError, match="goes with a LoRA"):
        Recipe.model_validate({**tree, "dpo": {"train": "full", "train_projector": True}})
    with pytest.raises(ValueError, match="but not a projector"):
        Recipe.model_validate({**tree, "dpo": {"train_projector": True}, "publication": {"extrapolate": 0.5}})


def test_in_bfloat16_the_projector_is_trained_in_float32(llava: tuple[Path, Dataset], tmp_path: Path) -> None:
    done = run(*llava, tmp_path, dtype="bfloat16")
    saved = load_file(tmp_path / "policy/adapter_model.safetensors")
    assert {each.dtype for name, each in saved.items() if ".lora_" not in name} == {torch.float32}
    assert done.metrics["changed_tensors"] == 1.0


@pytest.mark.field
def test_checks_count_the_projector_and_know_which_engine_takes_it(llava: tuple[Path, Dataset]) -> None:
    plain, more = dpo_recipe(llava[0]), dpo_recipe(llava[0], train_projector=True)
    (without, _), (with_it, found) = sizes(plain), sizes(more)
    assert found == []
    assert without is not None
    assert with_it is not None
    model, _ = families.FAMILIES["llava"].build()
    own = sum(each.numel() for each in model.get_submodule("model.multi_modal_projector").parameters())
    assert (with_it.trained - without.trained, with_it.parameters) == (own, without.parameters)
    base = PolicyInfo(0, "base", "active", digest="", base_digest="")
    for engine, codes in (("transformers 5.23", []), ("vllm 0.9", ["POLICY_KIND_UNSUPPORTED"])):
        can = Capabilities(
            engine, "m", "raw", "float32", True, True, "hot", "hot", True, True, 64, 1024, 1 << 20, 1 << 20,
            picture_rule=PICTURE_RULE,
        )  # fmt: skip
        assert [each.code for each in sampler(more, Policies((), can, 0, base))] == codes
