"""QLoRA on a CPU: sampler and update load one 4-bit base and agree closely; an adapter arrives; others are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_models import dpo_recipe, random_pairs
from sampler_models import Running, make_llava, png, running, seal
from sightline.errors import PreconditionFailed
from sightline.sampler import Exact, Probe, SamplerClient, policy_dirname
from sightline_trainer.dpo.reference_logprobs import token_logprobs
from sightline_trainer.dpo.sampled import SampledLogprobs
from sightline_trainer.dpo.setup import load_policy, make_trainer
from sightline_trainer.dpo.update import update
from sightline_trainer.preflight import memory
from sightline_trainer.preflight.model import sizes
from sightline_trainer.recipe import Recipe

LAYOUT = [(0, 1, 2), (0, 1, 3), (1, 4, 0), (2, 0, 3)]
SIZES = {"p0": (40, 40), "p1": (56, 40), "p2": (72, 40)}  # of random_pairs' pictures


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("llava"))


def recipe_of(model: Path, quantization: str | None = "nf4", **dpo: Any) -> Recipe:
    return Recipe.model_validate({**dpo_recipe(model, **dpo).model_dump(), "quantization": quantization})


@pytest.fixture(scope="module")
def sampler(model: Path) -> Iterator[tuple[Running, SamplerClient]]:
    with (
        running(model, engine={"quantization": "nf4"}, policies={"gate": {"required": True}}) as at,
        SamplerClient(at.address, timeout=60) as client,
    ):
        yield at, client


def picture(row: dict[str, Any]) -> bytes:
    content: bytes = row["images"][0]["bytes"]
    return content


def test_only_the_decoder_is_held_in_four_bits(model: Path) -> None:
    import bitsandbytes

    made = load_policy(model, "float32", quantization="nf4")
    held = {name for name, part in made.named_modules() if isinstance(part, bitsandbytes.nn.Linear4bit)}
    inside = {
        name for name, part in made.named_modules() if isinstance(part, torch.nn.Linear) and "language_model" in name
    }
    assert held == inside
    assert len(held) == 14
    assert all(part.weight.quant_type == "nf4" for name, part in made.named_modules() if name in held)


@pytest.mark.slow
def test_an_update_on_four_bits_arrives(model: Path, sampler: tuple[Running, SamplerClient], tmp_path: Path) -> None:
    _, client = sampler
    recipe, pairs = recipe_of(model, epochs=2, learning_rate=2e-3, lora={"rank": 4}), random_pairs(model, LAYOUT)
    trainer = make_trainer(recipe, pairs, previous=None, work=tmp_path / "look", seed=0)
    assert all(each.dtype == torch.float32 for each in trainer.model.parameters() if each.requires_grad)
    rows = list(trainer.train_dataset)
    batch = trainer.data_collator(rows)
    masks, ours = batch["completion_mask"][:, 1:].bool(), token_logprobs(trainer, batch).cpu()
    for at, row in enumerate(rows):
        theirs = client.score_tokens(picture(row), row["prompt"][0]["content"], row["chosen_ids"], policy=Exact(0))
        assert (ours[at][masks[at]] - torch.from_numpy(theirs.logprobs.copy())).abs().mean() < 1e-4

    directory = tmp_path / policy_dirname(1)
    directory.mkdir()
    done = update(
        recipe, pairs, previous=None, adapter=directory, work=tmp_path / "work", seed=0, progress=lambda *_: None
    )
    assert done.metrics["base_bits"] == 4.0
    assert done.metrics["shared_prefix"] == 1.0
    assert {path.name for path in directory.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    seal(directory, model, 1, "lora")
    by_prompt = {row["prompt_id"]: row for row in rows}
    probes = [
        Probe(picture(by_prompt[one.prompt_id]), one.prompt, one.token_ids, one.logprobs, one.previous_logprobs)
        for one in done.probes
    ]
    client.stage(directory, 1)
    arrival = client.activate(1, probes=probes).arrival
    assert arrival is not None
    assert arrival.passed
    assert arrival.gap < 1e-3
    before = client.score_tokens(picture(rows[0]), probes[0].prompt, [7, 9, 11]).logprobs
    client.pause(release=True)
    client.resume()
    assert (client.score_tokens(picture(rows[0]), probes[0].prompt, [7, 9, 11]).logprobs == before).all()


@pytest.mark.slow
def test_candidates_of_another_base_are_refused(model: Path, tmp_path: Path) -> None:
    pairs, told = random_pairs(model, LAYOUT), {}
    with running(model) as at, SamplerClient(at.address, timeout=60) as whole:
        for row in pairs:
            for side in ("chosen_ids", "rejected_ids"):
                prompt, ids = row["prompt"][0]["content"], row[side]
                scores = whole.score_tokens(png(int(row["prompt_id"][1:]), SIZES[row["prompt_id"]]), prompt, ids)
                told[f"{row['prompt_id']}\n{prompt}", tuple(ids)] = scores.logprobs.tolist()
    (tmp_path / "policy").mkdir()
    with pytest.raises(PreconditionFailed) as caught:
        update(
            recipe_of(model), pairs, previous=None, adapter=tmp_path / "policy", work=tmp_path, seed=0,
            progress=lambda *_: None, sampled=SampledLogprobs(0, told),
        )  # fmt: skip
    assert caught.value.reason == "SAMPLED_LOGPROBS_DIFFER"


def test_four_bits_are_not_trained_whole(model: Path) -> None:
    with pytest.raises(ValueError, match="4 bits can't be trained"):
        recipe_of(model, train="full")


def test_the_estimate_knows_four_bits(model: Path) -> None:
    recipe, plain = recipe_of(model), recipe_of(model, None)
    known, found = sizes(recipe)
    assert known is not None
    assert not found
    assert known.linear == sum(
        part.weight.numel()
        for name, part in load_policy(model, "float32").named_modules()
        if isinstance(part, torch.nn.Linear) and "language_model" in name
    )
    less = [
        memory.estimate(each, known, prompt=100, here=("sampler",)).processes["trainer"].parts["weights"]
        for each in (plain, recipe)
    ]
    assert less[0] - less[1] == int((4 - 0.516) * known.linear)
