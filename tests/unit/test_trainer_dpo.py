"""The DPO update, compared with TRL and with numbers derived by hand, on the playground's LVLM in fp32."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from running import WEIGHTS
from safetensors.torch import load_file, save_file
from sightline.errors import InternalError, PreconditionFailed
from sightline_trainer.dpo.collator import PairCollator
from sightline_trainer.dpo.extrapolate import extrapolated
from sightline_trainer.dpo.family import Family
from sightline_trainer.dpo.reference_logprobs import add_reference, token_logprobs
from sightline_trainer.dpo.sampled import SampledLogprobs
from sightline_trainer.dpo.setup import make_trainer
from sightline_trainer.dpo.update import update
from sightline_trainer.pairs.build import FEATURES
from sightline_trainer.recipe import Recipe
from torch.nn.functional import logsigmoid
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

BETA = 0.1
TEXTS = [
    ("there is a red star at the top left .", "there is a red star at the top left and a blue circle ."),
    ("there is a green square .", "there is a green square at the top ."),
]


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(WEIGHTS / "llava")


@pytest.fixture(scope="module")
def pairs(processor: Any) -> Dataset:
    rows = []
    eos = processor.tokenizer.eos_token_id
    for number, (chosen, rejected) in enumerate(TEXTS):
        image = io.BytesIO()
        Image.new("RGB", (48, 48), (200 * number, 80, 40)).save(image, "PNG")
        messages = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "describe the picture ."}]}
        ]
        ids = [processor.tokenizer(f"{text}", add_special_tokens=False).input_ids for text in (chosen, rejected)]
        rows.append(
            {
                "prompt_id": f"p{number}",
                "images": [{"bytes": image.getvalue(), "path": f"{number}.png"}],
                "prompt": [{"role": "user", "content": "describe the picture ."}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "rendered_prompt": processor.apply_chat_template(messages, add_generation_prompt=True),
                "chosen_ids": [*ids[0], eos],
                "rejected_ids": [*ids[1], eos],
                "chosen_reward": 30.0,
                "rejected_reward": 25.0,
                "margin": 5.0,
                "chosen_policy_version": 0,
                "rejected_policy_version": 0,
                "chosen_index": 0,
                "rejected_index": 1,
                "iteration": 1,
            }
        )
    return Dataset.from_list([{name: row.get(name) for name in FEATURES} for row in rows], features=FEATURES)


def recipe(**dpo: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "model": str(WEIGHTS / "llava"),
            "threads": 1,
            "data": {"train": "a", "test": "b"},
            "dpo": {"beta": BETA, "batch_size": 2, "epochs": 2, **dpo},
        }
    )


def trainer_for(pairs: Dataset, tmp_path: Path, **dpo: Any) -> Any:
    return make_trainer(recipe(**dpo), pairs, previous=None, work=tmp_path / "trl", seed=0)


def shake(trainer: Any) -> None:
    """Move the adapter away from its start, which changes nothing."""
    torch.manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)


def batch(trainer: Any) -> dict[str, Any]:
    """All pairs as one batch."""
    return dict(trainer.data_collator(list(trainer.train_dataset)))


def by_hand(model: Any, processor: Any, pair: dict[str, Any], side: str) -> float:
    """log p(response | image, prompt), one row without padding, token by token."""
    inputs = processor(images=pair["images"][0], text=pair["rendered_prompt"], return_tensors="pt")
    assert inputs.input_ids[0, 0] == processor.tokenizer.bos_token_id
    prompt, response = inputs.pop("input_ids")[0], torch.tensor(pair[f"{side}_ids"])
    inputs.pop("attention_mask")
    ids = torch.cat([prompt, response])[None]
    with torch.no_grad():
        logits = model(input_ids=ids, **inputs).logits[0].double()
    total = 0.0
    for position, token in enumerate(response.tolist()):
        total += logits[len(prompt) + position - 1].log_softmax(-1)[token].item()
    return total


def test_at_the_start_policy_is_reference_and_the_loss_is_log_two(pairs: Dataset, tmp_path: Path) -> None:
    trainer = trainer_for(pairs, tmp_path)
    loss = trainer.compute_loss(trainer.model.train(), batch(trainer))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)


def test_the_loss_is_the_papers_formula(pairs: Dataset, processor: Any, tmp_path: Path) -> None:
    """-log sigmoid(beta * ((log pi(c) - log ref(c)) - (log pi(r) - log ref(r)))), mean over pairs (Rafailov 2023)."""
    trainer = trainer_for(pairs, tmp_path)
    shake(trainer)
    loss = trainer.compute_loss(trainer.model.train(), batch(trainer)).item()
    base = AutoModelForImageTextToText.from_pretrained(WEIGHTS / "llava", dtype=torch.float32).eval()
    policy = trainer.model.merge_and_unload().eval()
    expected = []
    for pair in pairs:
        ratio = {
            side: by_hand(policy, processor, pair, side) - by_hand(base, processor, pair, side)
            for side in ("chosen", "rejected")
        }
        expected.append(-logsigmoid(torch.tensor(BETA * (ratio["chosen"] - ratio["rejected"]))).item())
    assert abs(ratio["chosen"]) > 0.1, "the adapter moved nothing"
    assert loss == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_our_batches_give_trls_loss_where_its_own_collator_sees_the_same_tokens(
    pairs: Dataset, processor: Any, tmp_path: Path
) -> None:
    trainer = trainer_for(pairs, tmp_path)
    shake(trainer)
    trainer.model.train()
    # TRL's collator adds no begin token and no end token to plain text: here the text brings them.
    bos, eos = processor.tokenizer.bos_token, processor.tokenizer.eos_token
    rows = [{**pair, "rendered_prompt": bos + pair["rendered_prompt"]} for pair in pairs]
    ours = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    theirs = DataCollatorForVisionPreference(processor)(
        [
            {
                "images": pair["images"],
                "prompt": pair["rendered_prompt"],
                "chosen": f" {pair['chosen'][0]['content']}{eos}",
                "rejected": f" {pair['rejected'][0]['content']}{eos}",
            }
            for pair in rows
        ]
    )
    assert ours.item() == pytest.approx(trainer.compute_loss(trainer.model, theirs).item(), rel=1e-4)


def test_reference_log_probs_computed_once_change_nothing(pairs: Dataset, tmp_path: Path) -> None:
    trainer = trainer_for(pairs, tmp_path)
    shake(trainer)
    trainer.model.train()
    online = trainer.compute_loss(trainer.model, batch(trainer)).item()
    add_reference(trainer, lambda done, total: None)
    trainer.model.train()
    assert "ref_chosen_logps" in batch(trainer)
    assert trainer.compute_loss(trainer.model, batch(trainer)).item() == pytest.approx(online, rel=1e-5)


def test_what_was_sampled_is_compared_with_what_was_published(pairs: Dataset, tmp_path: Path) -> None:
    """An extrapolated policy draws the samples; the update continues from the trained one."""
    trainer = trainer_for(pairs, tmp_path)
    shake(trainer)
    rows = list(trainer.train_dataset)
    with extrapolated(trainer.model, 0.5):
        every = token_logprobs(trainer, batch(trainer))
    masks = batch(trainer)["completion_mask"][:, 1:].bool()
    keys = [
        (f"{row['prompt_id']}\n{row['prompt'][0]['content']}", tuple(row[f"{side}_ids"]))
        for side in ("chosen", "rejected")
        for row in rows
    ]
    sampled = SampledLogprobs(1, {key: every[at][masks[at]].tolist() for at, key in enumerate(keys)})
    gaps = {
        further: add_reference(trainer, lambda done, total: None, sampled=sampled, extrapolate=further)
        for further in (0.0, 0.5)
    }
    assert len(gaps[0.5]) == len(gaps[0.0]) == 4
    assert max(gaps[0.5].values()) < 1e-5
    assert min(gaps[0.0].values()) > 1e-3


def test_the_collator_keeps_the_sampled_tokens_and_never_cuts(pairs: Dataset, processor: Any) -> None:
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS / "llava")
    batch = PairCollator(Family(model, processor))(list(pairs))
    rows = [pair[f"{side}_ids"] for side in ("chosen", "rejected") for pair in pairs]
    for i, ids in enumerate(rows):
        assert batch["input_ids"][i][batch["completion_mask"][i].bool()].tolist() == ids
        assert ids[-1] == processor.tokenizer.eos_token_id
    image_tokens = (batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<image>")).sum(dim=1)
    assert image_tokens.tolist() == [(48 // processor.patch_size) ** 2] * 4
    assert batch["pixel_values"].shape == (4, 3, 48, 48)


def test_an_update_widens_the_margin_and_the_next_one_goes_on_from_it(pairs: Dataset, tmp_path: Path) -> None:
    values = {"learning_rate": 1e-3, "epochs": 8}
    steps: list[tuple[int, int]] = []
    first = update(
        recipe(**values), pairs, previous=None, adapter=tmp_path / "a", work=tmp_path / "w", seed=0,
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert first.metrics["rewards_margins"] > 0
    assert first.metrics["rewards_accuracies"] == 1.0
    assert steps[-1][0] == steps[-1][1]
    assert [len(probe.token_ids) for probe in first.probes] == [len(probe.logprobs) for probe in first.probes]
    again = make_trainer(recipe(**values), pairs, previous=tmp_path / "a", work=tmp_path / "w", seed=0)
    batch = {k: v for k, v in PairCollator(again.data_collator.family)(list(pairs)).items() if k != "completion_mask"}
    with torch.no_grad():
        logits = again.model.eval()(**batch, use_cache=False).logits
    ids = first.probes[0].token_ids
    end = int(batch["attention_mask"][0].sum())
    logprobs = logits[0, end - len(ids) - 1 : end - 1].log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
    assert logprobs.tolist() == pytest.approx(first.probes[0].logprobs, abs=1e-4)


def test_an_adapter_of_another_model_is_refused(pairs: Dataset, tmp_path: Path) -> None:
    update(
        recipe(), pairs, previous=None, adapter=tmp_path / "a", work=tmp_path / "w", seed=0,
        progress=lambda done, total: None,
    )  # fmt: skip
    tensors = load_file(tmp_path / "a/adapter_model.safetensors")
    save_file({f"other.{key}": value for key, value in tensors.items()}, tmp_path / "a/adapter_model.safetensors")
    with pytest.raises(PreconditionFailed, match="does not fit"):
        make_trainer(recipe(), pairs, previous=tmp_path / "a", work=tmp_path / "w", seed=0)


def test_a_loss_that_is_not_finite_stops_the_update_and_saves_nothing(pairs: Dataset, tmp_path: Path) -> None:
    values = {"learning_rate": 1e30, "warmup_ratio": 0.0, "schedule": "constant", "epochs": 4}
    with pytest.raises(InternalError, match="NaN or infinite"):
        update(
            recipe(**values), pairs, previous=None, adapter=tmp_path / "a", work=tmp_path / "w", seed=0,
            progress=lambda done, total: None,
        )  # fmt: skip
    assert not (tmp_path / "a").exists()
