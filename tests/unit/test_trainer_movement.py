"""An update that teaches nothing, sees no pixels or has another policy's log-probs is an error, not a success."""

import gc
import io
import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from dpo_models import dpo_recipe, make_family, random_pairs
from PIL import Image
from running import WEIGHTS
from safetensors.torch import load_file
from sightline.errors import InternalError, PreconditionFailed
from sightline_trainer.dpo import pixels
from sightline_trainer.dpo import update as updating
from sightline_trainer.dpo.device import check_device, full_memory, pin
from sightline_trainer.dpo.probes import LEAST_PAIRS
from sightline_trainer.dpo.probing import UpdateProbe
from sightline_trainer.dpo.reference_logprobs import token_logprobs
from sightline_trainer.dpo.sampled import SampledLogprobs
from sightline_trainer.dpo.setup import make_trainer
from sightline_trainer.dpo.update import Update, update
from sightline_trainer.records.response import CANDIDATE_SCHEMA
from sightline_trainer.sections import Publication
from transformers import AutoProcessor, PreTrainedModel
from trl import DPOConfig

pytestmark = pytest.mark.field

LAYOUT = [(0, 1, 2), (0, 1, 3), (0, 4, 1), (1, 4, 0)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("movement") / "llava", "llava")


@pytest.fixture(scope="module")
def pairs(model: Path) -> Dataset:
    return random_pairs(model, LAYOUT)


def run(model: Path, pairs: Dataset, root: Path, sampled: SampledLogprobs | None = None, **dpo: Any) -> Update:
    return update(
        dpo_recipe(model, **dpo), pairs, previous=None, adapter=root / "policy", work=root / "work", seed=0,
        progress=lambda done, total: None, sampled=sampled,
    )  # fmt: skip


def test_a_full_update_in_bfloat16_moves_float32_masters(pairs: Dataset, tmp_path: Path) -> None:
    """With bfloat16 weights, only 2 % of the playground model's elements changed at this rate."""
    weights = WEIGHTS / "llava"
    processor = AutoProcessor.from_pretrained(weights)
    shown = [processor.tokenizer(text, add_special_tokens=False).input_ids for text in ("a red star .", "a ring .")]
    rows = [{**row, "chosen_ids": shown[0], "rejected_ids": shown[1]} for row in pairs.select([0, 3])]
    values = {"train": "full", "learning_rate": 5e-6, "batch_size": 1, "epochs": 2}
    asked = Dataset.from_list(rows, features=pairs.features)
    short = run(weights, asked, tmp_path / "bf16", dtype="bfloat16", **values)
    long = run(weights, asked, tmp_path / "fp32", **values)
    assert short.metrics["changed_tensors"] == long.metrics["changed_tensors"] == 1.0
    assert short.metrics["changed_elements"] > 0.98
    assert short.metrics["changed_elements"] == pytest.approx(long.metrics["changed_elements"], abs=0.01)
    assert short.metrics["update_norm"] == pytest.approx(long.metrics["update_norm"], rel=0.3)
    saved = load_file(tmp_path / "bf16/policy/model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.parametrize("values", [{}, {"train": "full"}], ids=str)
def test_probes_are_scored_later_with_the_initial_weights_if_few_are_too_few(
    model: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    """Four pairs are scored before; the others, once the update turns out to be small, as if they had been, too."""
    pairs = random_pairs(model, [*LAYOUT, (1, 4, 2), (2, 0, 1), (2, 1, 3), (3, 2, 0)])
    assert len(pairs) > LEAST_PAIRS

    def probes(wanted: int | str) -> dict[tuple[str, tuple[int, ...]], UpdateProbe]:
        recipe = dpo_recipe(model, learning_rate=1e-5, **values)
        recipe = recipe.model_copy(update={"publication": Publication.model_validate({"probes": wanted})})
        done = update(
            recipe, pairs, previous=None, adapter=tmp_path / str(wanted), work=tmp_path / "work", seed=0,
            progress=lambda done, total: None,
        )  # fmt: skip
        return {(each.prompt_id, tuple(each.token_ids)): each for each in done.probes}

    later, before = probes("auto"), probes(len(pairs))
    assert 6 < len(later) <= len(before), "the first four pairs have six responses"
    for key, each in later.items():
        assert each.previous_logprobs == pytest.approx(before[key].previous_logprobs, abs=1e-6)
        assert each.logprobs == pytest.approx(before[key].logprobs, abs=1e-6)
        assert each.logprobs != each.previous_logprobs
    saved = [load_file(next((tmp_path / str(wanted)).glob("*.safetensors"))) for wanted in ("auto", len(pairs))]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_a_rate_too_small_for_the_numbers_is_refused(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    with pytest.raises(PreconditionFailed, match="learned nothing") as caught:
        run(model, pairs, tmp_path, train="full", learning_rate=1e-12)
    assert caught.value.reason == "UPDATE_CHANGED_NOTHING"
    assert not (tmp_path / "policy").exists()


def test_a_gradient_of_exactly_zero_is_told(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    same = pairs.map(lambda row: {"rejected_ids": row["chosen_ids"]}, features=pairs.features)
    with pytest.raises(InternalError, match="exactly 0") as caught:
        run(model, same, tmp_path)
    assert caught.value.reason == "GRADIENT_IS_ZERO"
    assert not (tmp_path / "policy").exists()


def test_a_hinge_that_is_won_has_no_gradient_by_right(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    metrics = run(
        model, pairs, tmp_path, loss={"hinge": 1.0}, beta=10.0, learning_rate=1e-2, epochs=12, schedule="constant"
    ).metrics
    assert metrics["zero_gradient_steps"] > 0
    assert metrics["changed_elements"] > 0.9


def test_tensors_that_no_loss_reaches_are_named(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    """The playground's tower is read before its last layer, so an adapter there has no gradient."""
    weights = WEIGHTS / "llava"
    layers = json.loads((weights / "config.json").read_text())["vision_feature_layer"]
    if layers == -1:
        pytest.fail("the playground's tower is read at its end: this test needs another way")
    with pytest.raises(PreconditionFailed, match=r"vision_tower.*no loss reaches") as caught:
        run(weights, pairs, tmp_path, epochs=2, lora={"target_modules": r".*(language_model|vision).*\.q_proj"})
    assert caught.value.reason == "TENSORS_WITHOUT_GRADIENT"


def test_an_adapters_first_step_is_no_fault(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    """A's gradient is 0 while B is 0; this is right and does not count."""
    metrics = run(model, pairs, tmp_path, batch_size=4, epochs=1).metrics
    assert metrics["steps"] == 1.0
    assert (metrics["changed_tensors"], metrics["changed_elements"]) == (1.0, 1.0)


def test_a_full_update_of_the_tower_trains_what_the_output_reaches(pairs: Dataset, tmp_path: Path) -> None:
    metrics = run(WEIGHTS / "llava", pairs, tmp_path, train="full", train_vision=True, learning_rate=1e-4).metrics
    assert metrics["changed_tensors"] == 1.0


def seen(model: Path, pairs: Dataset, tmp_path: Path) -> Path:
    """A rollout's candidates with the log-probs of the base model."""
    trainer = make_trainer(dpo_recipe(model), pairs, previous=None, work=tmp_path / "ask", seed=0)
    rows = list(trainer.train_dataset)
    batch = trainer.data_collator(rows)
    values, masks = token_logprobs(trainer, batch), batch["completion_mask"][:, 1:].bool()
    found = [
        {
            "prompt_id": row["prompt_id"], "index": row[f"{side}_index"], "prompt": row["prompt"][0]["content"],
            "token_ids": row[f"{side}_ids"], "logprobs": values[at + first][masks[at + first]].tolist(),
            "policy_version": 0, "source": "policy",
        }
        for first, side in ((0, "chosen"), (len(rows), "rejected")) for at, row in enumerate(rows)
    ]  # fmt: skip
    write(tmp_path / "candidates/00000.parquet", found)
    return tmp_path / "candidates"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    whole = [{name: row.get(name) for name in CANDIDATE_SCHEMA.names} for row in rows]
    pq.write_table(pa.Table.from_pylist(whole, CANDIDATE_SCHEMA), path)


def test_every_sampled_side_is_held_against_the_sampler(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    candidates = seen(model, pairs, tmp_path)
    metrics = run(model, pairs, tmp_path / "same", SampledLogprobs.read(candidates, 0)).metrics
    # 8 sides, three of them one response in three pairs: compared each time, and counted once.
    assert metrics["sampled_sides"] == len({(row["prompt_id"], side, row[f"{side}_index"]) for row in pairs
                                            for side in ("chosen", "rejected")})  # fmt: skip
    assert metrics["sampled_gap_max"] < 1e-5
    assert metrics["sampled_gap_over"] == 0.0
    assert run(model, pairs, tmp_path / "other", SampledLogprobs.read(candidates, 7)).metrics["sampled_sides"] == 0.0
    rows = pq.read_table(candidates / "00000.parquet").to_pylist()
    for row in rows:
        row["source"] = "noised_image"  # was not sampled on the clean picture
    write(candidates / "00000.parquet", rows)
    assert run(model, pairs, tmp_path / "noised", SampledLogprobs.read(candidates, 0)).metrics["sampled_sides"] == 0.0


def test_a_policy_that_goes_on_is_compared_as_it_stands(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    """The log-probs come from the starting policy, not from the reference."""
    candidates = seen(model, pairs, tmp_path)
    run(model, pairs, tmp_path / "one", learning_rate=1e-2, epochs=4, schedule="constant")
    recipe = dpo_recipe(model)
    with pytest.raises(PreconditionFailed, match="differ from the sampler's"):
        update(
            recipe, pairs, previous=tmp_path / "one/policy", adapter=tmp_path / "two", work=tmp_path / "w", seed=0,
            progress=lambda done, total: None, sampled=SampledLogprobs.read(candidates, 0),
        )  # fmt: skip


def test_log_probs_that_are_not_the_samplers_end_the_run_and_name_rows(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    candidates = seen(model, pairs, tmp_path)
    rows = pq.read_table(candidates / "00000.parquet").to_pylist()
    rows[-1]["logprobs"] = [value - 0.01 for value in rows[-1]["logprobs"]]
    write(candidates / "00000.parquet", rows)
    with pytest.raises(PreconditionFailed, match=r"worst: p1 rejected 0 \(0\.01\)") as caught:
        run(model, pairs, tmp_path, SampledLogprobs.read(candidates, 0))
    assert caught.value.reason == "SAMPLED_LOGPROBS_DIFFER"
    metrics = run(model, pairs, tmp_path, SampledLogprobs.read(candidates, 0), max_sampled_gap=0.02).metrics
    assert metrics["sampled_gap_max"] < 0.02


def test_pictures_that_do_not_reach_the_model_are_refused(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    """If a tower's features are lost on the way, losses look normal."""
    from transformers import AutoModelForImageTextToText

    blind = AutoModelForImageTextToText.from_pretrained(model)
    with torch.no_grad():
        for parameter in blind.model.multi_modal_projector.parameters():
            parameter.zero_()
    blind.save_pretrained(tmp_path / "blind")
    AutoProcessor.from_pretrained(model).save_pretrained(tmp_path / "blind")
    with pytest.raises(PreconditionFailed, match=r"blank picture \(p0, p1\)") as caught:
        run(tmp_path / "blind", pairs, tmp_path)
    assert caught.value.reason == "IMAGE_DOES_NOT_MATTER"
    assert run(model, pairs, tmp_path / "seeing").metrics["image_matters"] > 1e-3


def test_the_blank_twin_of_a_photo_that_is_stored_turned_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    file = io.BytesIO()
    Image.new("RGB", (40, 80), "red").save(file, "JPEG", exif=exif)
    blank = pixels._blank({"bytes": file.getvalue(), "path": None})
    assert Image.open(io.BytesIO(blank["bytes"])).size == (80, 40)


def test_a_picture_that_is_blank_itself_is_no_proof_against_the_model(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (127, 127, 127)).save(buffer, "PNG")
    grey = {"images": [{"bytes": buffer.getvalue(), "path": "grey.png"}]}
    asked = Dataset.from_list([{**row, **grey} for row in raw(pairs)], features=pairs.features)
    assert run(model, asked, tmp_path).metrics["image_matters"] > 1e-3


def raw(pairs: Dataset) -> list[dict[str, Any]]:
    return [{**row, "images": [{"bytes": b"", "path": None}]} for row in pairs]


@pytest.mark.parametrize(
    "values",
    [
        {},
        pytest.param({"train": "full"}, marks=pytest.mark.slow),
        pytest.param({"train": "full", "dtype": "bfloat16"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_no_model_of_an_earlier_update_stays_alive(
    values: dict[str, Any], model: Path, pairs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[PreTrainedModel]] = []
    while_training: list[int] = []
    from sightline_trainer.dpo import setup

    load: Callable[..., Any] = setup.load_policy

    def watched(*args: Any) -> Any:
        loaded = load(*args)
        alive.append(weakref.ref(loaded))
        return loaded

    class Counting(updating.Progress):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            while_training.append(sum(ref() is not None for ref in alive))
            super().on_step_end(*args, **kwargs)

    monkeypatch.setattr(setup, "load_policy", watched)
    monkeypatch.setattr(updating, "Progress", Counting)
    for number in range(3):
        run(model, pairs, tmp_path / str(number), **values)
        gc.disable()  # memory is freed without the garbage collector
        living = sum(ref() is not None for ref in alive)
        gc.enable()
        assert living == 0
    assert set(while_training) == {1}, "the reference or an earlier policy stood beside the one that trains"


def test_an_update_that_fails_leaves_no_model_either(
    model: Path, pairs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sightline_trainer.dpo import setup

    alive: list[weakref.ref[Any]] = []
    load: Callable[..., Any] = setup.load_policy

    def watched(*args: Any) -> Any:
        loaded = load(*args)
        alive.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(setup, "load_policy", watched)
    same = pairs.map(lambda row: {"rejected_ids": row["chosen_ids"]}, features=pairs.features)
    with pytest.raises(InternalError) as kept:
        run(model, same, tmp_path)
    assert "exactly 0" in str(kept.value)  # as a queue of runs stores it
    del kept
    gc.collect()
    assert [ref() for ref in alive] == [None]


def test_a_model_that_fails_its_trial_forward_is_named(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    """Its processor inserts another number of image tokens than its tower returns."""
    shutil.copytree(model, tmp_path / "odd")
    file = tmp_path / "odd/processor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "patch_size": 16}))
    with pytest.raises(PreconditionFailed, match=r"odd fails its trial forward: ") as caught:
        run(tmp_path / "odd", pairs, tmp_path)
    assert caught.value.reason == "MODEL_FAILS_FORWARD"


def test_memory_of_a_full_update_is_known_beforehand(model: Path) -> None:
    recipe = dpo_recipe(model, train="full", dtype="bfloat16")
    needed = full_memory(recipe)
    trained = needed.gradients // 4
    assert (needed.optimizer, needed.compute, needed.before) == (8 * trained, 2 * trained, 4 * trained)
    assert needed.reference == needed.masters > needed.gradients  # the tower is not trained
    assert needed.peak == needed.masters + 14 * trained
    assert str(needed) in check_device(recipe)
    assert check_device(dpo_recipe(model)).startswith("the update runs on")
    assert check_device(dpo_recipe(model, launch=["torchrun"])) == ""


def test_one_process_trains_on_one_device(tmp_path: Path) -> None:
    arguments = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert arguments.n_gpu <= 1
    arguments._n_gpu = 4  # as transformers sets it where it sees four GPUs
    pin(arguments)
    assert arguments.n_gpu == 1


def test_equal_seeds_and_one_thread_give_equal_adapter_bytes(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    one, two = (run(model, pairs, tmp_path / name, epochs=3) for name in ("one", "two"))
    files = [(tmp_path / name / "policy/adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    assert [replace(probe) for probe in one.probes] == two.probes
