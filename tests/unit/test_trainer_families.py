"""The update in each family: rows as in a plain forward pass, the shared prefix, trained and saved weights."""

import json
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from datasets import Dataset
from dpo_models import dpo_recipe
from family_pairs import family_pairs
from peft import PeftModel
from safetensors import safe_open
from sightline.errors import PreconditionFailed
from sightline_sampler.engines.remote.merge import merge
from sightline_trainer.dpo import proof
from sightline_trainer.dpo.collator import PairCollator, decoded
from sightline_trainer.dpo.decoder import adapted
from sightline_trainer.dpo.family import Family
from sightline_trainer.dpo.sharing import share
from sightline_trainer.dpo.support import FAMILIES
from sightline_trainer.dpo.update import Update, update
from sightline_trainer.preflight.begin import without_services
from test_trainer_sharing import assert_equal, prepared
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
from trl.trainer.utils import add_fused_lm_head

NAMES = [
    pytest.param(name, marks=() if family.quick else pytest.mark.slow) for name, family in families.FAMILIES.items()
]
REFUSED = {
    "blip_2": "before the head",
    "instructblip": "before the head",
    "molmo2": "several prompts' image_token_pooling",
}
# Its decoder is called text_model, and a full update left it frozen.
FULL = [pytest.param(name, marks=() if name == "smolvlm" else pytest.mark.slow) for name in families.FAMILIES]
RUN_TOO = ("mllama", "minicpmv4_6")
LLAVA = "llava"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Dataset]]:
    """Checkpoint and pairs of a family, created once."""
    made: dict[str, tuple[Path, Dataset]] = {}

    def get(name: str) -> tuple[Path, Dataset]:
        if name not in made:
            model = families.make(tmp_path_factory.mktemp(name) / "model", name)
            made[name] = model, family_pairs(model, name)
        return made[name]

    return get


def run(model: Path, pairs: Dataset, root: Path, **dpo: Any) -> Update:
    return update(
        dpo_recipe(model, learning_rate=1e-3, **dpo), pairs, previous=None, adapter=root / "policy",
        work=root / "work", seed=0, progress=lambda done, total: None,
    )  # fmt: skip


def tensors(directory: Path) -> dict[str, list[int]]:
    """Names and shapes of a checkpoint's weights."""
    with safe_open(directory / "model.safetensors", "np") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def logits(model: Any, family: Family, pair: dict[str, Any]) -> np.ndarray:
    """Logits of every token of a pair's prompt, by a plain forward pass."""
    prompt = family.processing.prompt(pair["rendered_prompt"], [decoded(image) for image in pair["images"]])
    with torch.no_grad():
        output = model.eval()(input_ids=prompt.ids[None], **prompt.tokens, **prompt.images)
    return output.logits[0].float().log_softmax(-1).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_the_shared_prefix_has_the_losses_and_gradients_of_plain_rows(
    name: str, family: Callable[[str], tuple[Path, Dataset]], tmp_path: Path
) -> None:
    model, pairs = family(name)
    trainer = prepared(model, pairs, tmp_path, batch_size=8)
    assert (trainer.data_collator.sharing is not None) == (trainer.model.config.model_type in FAMILIES)
    if trainer.data_collator.sharing is not None:
        assert_equal(trainer)


SHARED = [name for name in families.FAMILIES if {name, f"{name}_v2"} & set(FAMILIES)]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if families.FAMILIES[n].quick else pytest.mark.slow) for n in SHARED]
)
def test_prompts_with_no_image_one_and_two_stand_in_one_batch(
    name: str, family: Callable[[str], tuple[Path, Dataset]]
) -> None:
    directory, pairs = family(name)
    processor = AutoProcessor.from_pretrained(directory)
    model = AutoModelForImageTextToText.from_pretrained(directory).eval()
    add_fused_lm_head(model)
    asked = Family(model, processor)
    rows = list(pairs)
    for at, images in ((0, []), (1, rows[1]["images"] + rows[4]["images"])):
        content = [*[{"type": "image"}] * len(images), {"type": "text", "text": "describe the picture"}]
        rendered = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        rows[at] = {**rows[at], "images": images, "rendered_prompt": rendered, "prompt_id": f"with {len(images)}"}
    plain = PairCollator(asked)(rows)
    packed = PairCollator(asked, sharing=share(model, cache_bytes=0))(rows)
    labels = plain["input_ids"].masked_fill(plain["completion_mask"] == 0, -100)
    with torch.no_grad():
        found = [
            model(**{k: v for k, v in batch.items() if k != "completion_mask"}, labels=labels, fused_lm_head=True)
            for batch in (plain, packed)
        ]
    torch.testing.assert_close(found[0].log_probs, found[1].log_probs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_an_update_trains_what_the_decoder_has_and_merges_into_the_hubs_layout(
    name: str, family: Callable[[str], tuple[Path, Dataset]], tmp_path: Path
) -> None:
    model, pairs = family(name)
    done = run(model, pairs, tmp_path)
    assert done.metrics["rows_gap"] < 1e-4
    assert done.metrics["image_matters"] > 1e-3
    assert done.metrics["changed_tensors"] == 1.0
    merge(tmp_path / "policy", model, tmp_path / "merged")
    assert tensors(tmp_path / "merged") == tensors(model)
    base = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    asked = Family(base, AutoProcessor.from_pretrained(model), shown=pairs[0]["rendered_prompt"])
    plain = logits(base, asked, pairs[0])
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    ours = logits(merged, asked, pairs[0])
    expected = logits(PeftModel.from_pretrained(base, tmp_path / "policy"), asked, pairs[0])
    assert np.abs(ours - expected).max() < 1e-3
    assert np.abs(plain - expected).max() > 1e-3


@pytest.mark.parametrize("name", FULL)
def test_a_full_update_trains_the_whole_decoder_and_leaves_a_whole_checkpoint(
    name: str, family: Callable[[str], tuple[Path, Dataset]], tmp_path: Path
) -> None:
    model, pairs = family(name)
    done = run(model, pairs, tmp_path, train="full")
    assert done.metrics["rows_gap"] < 1e-4
    assert done.metrics["changed_tensors"] == 1.0
    policy = tmp_path / "policy"
    assert tensors(policy) == tensors(model)
    assert {path.name for path in model.iterdir()} <= {path.name for path in policy.iterdir()}
    before = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    after = AutoModelForImageTextToText.from_pretrained(policy, dtype=torch.float32)
    assert getattr(after.config, "use_cache", None) == getattr(before.config, "use_cache", None)
    inside = {id(each) for each in (*before.get_decoder().parameters(), *before.get_output_embeddings().parameters())}
    others = dict(after.named_parameters())
    moved = {name: not torch.equal(old, others[name]) for name, old in before.named_parameters()}
    assert {name for name, old in before.named_parameters() if id(old) in inside} == {n for n, m in moved.items() if m}
    processor = AutoProcessor.from_pretrained(policy)
    assert processor.chat_template == AutoProcessor.from_pretrained(model).chat_template


@pytest.mark.slow
@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_tower_and_projector_train_too_where_features_are_made_of_them(
    name: str, family: Callable[[str], tuple[Path, Dataset]], tmp_path: Path
) -> None:
    model, pairs = family(name)
    assert run(model, pairs, tmp_path, train="full", train_vision=True).metrics["changed_tensors"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_in_bfloat16_rows_are_within_its_rounding(
    name: str, family: Callable[[str], tuple[Path, Dataset]], tmp_path: Path
) -> None:
    model, pairs = family(name)
    assert run(model, pairs, tmp_path, dtype="bfloat16").metrics["rows_gap"] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN_TOO)
def test_others_that_run(name: str, family: Callable[[str], tuple[Path, Dataset]], tmp_path: Path) -> None:
    model, pairs = family(name)
    done = run(model, pairs, tmp_path)
    assert done.metrics["rows_gap"] < 1e-4
    assert done.metrics["image_matters"] > 1e-3


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "molmo2" else pytest.mark.slow) for n in REFUSED])
def test_others_are_refused_in_a_sentence(
    name: str, family: Callable[[str], tuple[Path, Dataset]], tmp_path: Path
) -> None:
    model, pairs = family(name)
    with pytest.raises(PreconditionFailed, match=REFUSED[name]) as caught:
        run(model, pairs, tmp_path)
    assert caught.value.reason == "FAMILY_UNSUPPORTED"
    assert not (tmp_path / "policy").exists()
    template = families.OTHERS[name].template
    for recipe in (dpo_recipe(model), dpo_recipe(model).model_copy(update={"chat_template": template})):
        known, found = without_services(recipe)  # before anything is sampled, and before a template is asked for
        assert (known, found[0].code) == (None, "FAMILY_UNSUPPORTED")
        assert re.search(REFUSED[name], found[0].message)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_trls_where_its_own_collator_sees_the_same_tokens(
    name: str, family: Callable[[str], tuple[Path, Dataset]]
) -> None:
    """TRL's collator adds no begin token, so the texts bring them, and tokenises responses again, so only the prompt's
    tokens and the images are compared."""
    directory, pairs = family(name)
    processor = AutoProcessor.from_pretrained(directory)
    model = AutoModelForImageTextToText.from_pretrained(directory)
    rows = list(pairs.select([0, 3, 4]))
    ours = PairCollator(Family(model, processor, shown=pairs[0]["rendered_prompt"]))(rows)
    try:
        theirs = DataCollatorForVisionPreference(processor)(
            [
                {
                    "images": row["images"], "prompt": _begun(processor, row["rendered_prompt"]),
                    "chosen": " star", "rejected": " star",
                }
                for row in rows
            ]
        )  # fmt: skip
    except (ValueError, RuntimeError, TypeError) as error:
        pytest.xfail(f"TRL's collator fails: {error}")
    for key in set(theirs) & set(ours) - {"input_ids", "attention_mask", "completion_mask"}:
        if theirs[key].shape == theirs["input_ids"].shape:  # a token's
            continue
        torch.testing.assert_close(ours[key], theirs[key], msg=key)
    for at in range(2 * len(rows)):
        prompt = [batch["input_ids"][at][: int(batch["completion_mask"][at].argmax())] for batch in (ours, theirs)]
        assert prompt[0].tolist() == prompt[1].tolist()


def _begun(processor: Any, rendered: str) -> str:
    """The text with the tokenizer's own begin token."""
    bos = processor.tokenizer.bos_token
    writes = bos and processor.tokenizer("a").input_ids[0] == processor.tokenizer.bos_token_id
    return bos + rendered if writes and not rendered.startswith(bos) else rendered


def test_a_family_whose_rows_differ_is_refused_in_a_sentence(
    family: Callable[[str], tuple[Path, Dataset]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Gemma 3 did: token types were left out, and 0.026 nats a token passed for rounding."""
    model, pairs = family("gemma3")
    made = PairCollator._plain

    def without(self: PairCollator, *arguments: Any) -> dict[str, torch.Tensor]:
        return {name: value for name, value in made(self, *arguments).items() if name != "token_type_ids"}

    monkeypatch.setattr(PairCollator, "_plain", without)
    with pytest.raises(PreconditionFailed, match="'gemma3' can't be trained") as caught:
        run(model, pairs, tmp_path, shared_prefix=False)
    assert caught.value.reason == "ROWS_DIFFER"
    assert not (tmp_path / "policy").exists()
    # A model that rounds coarsely is held against its own rounding, and this is far over it.
    monkeypatch.setattr(proof, "LIMITS", {"float32": 1e-9, "bfloat16": 1e-9})
    with pytest.raises(PreconditionFailed, match="'gemma3' can't be trained"):
        run(model, pairs, tmp_path, shared_prefix=False, dtype="bfloat16")
    monkeypatch.setattr(PairCollator, "_plain", made)
    figures = run(model, pairs, tmp_path, dtype="bfloat16").metrics
    assert 1e-9 < figures["rows_gap"] <= 2 * figures["rows_rounding"]


def test_a_batch_with_a_row_longer_than_the_window_goes_by_plain_rows(
    family: Callable[[str], tuple[Path, Dataset]], tmp_path: Path
) -> None:
    model, pairs = family("gemma3")
    trainer = prepared(model, pairs, tmp_path, batch_size=8)
    rows = list(trainer.train_dataset)
    batch = trainer.data_collator(rows)
    longest = batch["input_ids"].shape[1]
    assert "shared_prefix" in batch
    trainer.data_collator.sharing.window = longest - 1
    batch = trainer.data_collator(rows)
    assert "shared_prefix" not in batch
    assert len(batch["pixel_values"]) == 2 * len(rows)


def test_an_expression_that_finds_nothing_is_refused_with_what_there_is(
    family: Callable[[str], tuple[Path, Dataset]], tmp_path: Path
) -> None:
    model, pairs = family("smolvlm")
    with pytest.raises(PreconditionFailed, match="finds no linear layer") as caught:
        run(model, pairs, tmp_path, lora={"target_modules": r".*language_model.*\.q_proj"})
    assert caught.value.reason == "LORA_FINDS_NOTHING"


def test_the_default_finds_every_linear_layer_of_the_decoder_and_no_other(
    family: Callable[[str], tuple[Path, Dataset]],
) -> None:
    for name in (LLAVA, "smolvlm", "gemma3"):
        model = AutoModelForImageTextToText.from_pretrained(family(name)[0])
        expression = adapted(model, None)
        found = {at for at, _ in model.named_modules() if re.fullmatch(expression, at)}
        inside = {id(module) for module in model.get_decoder().modules() if isinstance(module, torch.nn.Linear)}
        assert found == {at for at, module in model.named_modules() if id(module) in inside}
        assert len(found) == 7 * model.config.get_text_config().num_hidden_layers


def test_what_goes_by_plain_rows_says_so(
    family: Callable[[str], tuple[Path, Dataset]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = family(LLAVA)
    loaded = AutoModelForImageTextToText.from_pretrained(model)
    loaded.config.model_type = "paligemma"
    with caplog.at_level(logging.WARNING):
        assert share(loaded, cache_bytes=1) is None
    assert ["the update uses plain rows" in record.getMessage() for record in caplog.records] == [True]


def test_another_attention_goes_by_plain_rows_and_one_that_is_not_there_is_refused(
    family: Callable[[str], tuple[Path, Dataset]], tmp_path: Path
) -> None:
    model, pairs = family(LLAVA)
    metrics = run(model, pairs, tmp_path, attn_implementation="eager").metrics
    assert (metrics["shared_prefix"], metrics["rows_gap"] < 1e-4) == (0.0, True)
    with pytest.raises(PreconditionFailed, match="flash_attention_2 is not available") as caught:
        run(model, pairs, tmp_path, attn_implementation="flash_attention_2")
    assert caught.value.reason == "ATTENTION_UNAVAILABLE"


def test_a_full_policy_has_the_generation_config_of_its_base(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Vicuna's temperature without sampling, two end tokens, and a tokenizer that names others than the model does."""
    model = families.make(tmp_path / "model", LLAVA)
    file = model / "generation_config.json"
    config = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": [5, 7], "max_length": 4096}
    file.write_text(json.dumps(config))
    whole = json.loads((model / "config.json").read_text())
    whole["text_config"]["eos_token_id"] = 5
    (model / "config.json").write_text(json.dumps(whole))
    with caplog.at_level(logging.WARNING):
        run(model, family_pairs(model, LLAVA), tmp_path, train="full")
    assert [record.getMessage() for record in caplog.records if "PAD/BOS/EOS" in record.getMessage()] == []
    saved = json.loads((tmp_path / "policy/generation_config.json").read_text())
    assert {name: saved.get(name) for name in config} == config
    after = json.loads((tmp_path / "policy/config.json").read_text())
    text = after["text_config"]
    assert after.get("use_cache") == whole.get("use_cache")
    names = ("eos_token_id", "bos_token_id", "pad_token_id")
    assert {name: text.get(name) for name in names} == {name: whole["text_config"].get(name) for name in names}


def test_old_names_that_the_libraries_call_do_not_reach_the_console(
    family: Callable[[str], tuple[Path, Dataset]], tmp_path: Path
) -> None:
    model, pairs = family(LLAVA)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(model, pairs, tmp_path, gradient_checkpointing=True)
        warnings.warn("`another` is deprecated", FutureWarning, stacklevel=1)
    assert [str(each.message) for each in told if each.category is FutureWarning] == ["`another` is deprecated"]
