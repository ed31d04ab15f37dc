"""A check's estimates and its report: memory, disk, time, findings. No service is needed."""

import dataclasses
from pathlib import Path
from typing import Any

import families
import pytest
from running import WEIGHTS
from sightline.errors import InvalidInput, NotFound, PreconditionFailed
from sightline_trainer.files import write_json
from sightline_trainer.preflight import disk, duration, memory
from sightline_trainer.preflight.finding import Finding, found_by, refuse
from sightline_trainer.preflight.memory import Place
from sightline_trainer.preflight.model import sizes
from sightline_trainer.preflight.provable import too_small, trial_rate
from sightline_trainer.preflight.sizes import Sizes
from sightline_trainer.preflight.trial import Trial, elsewhere
from sightline_trainer.recipe import Recipe

GIB = 1 << 30
# LLaVA-1.5-7b, whose figures are known.
LLAVA_7B = Sizes(
    family="llava", parameters=7_063_427_072, trained=39_976_960, modules=224, stored=2, layers=32, width=4096,
    inner=11008, kept=4096, shared=True,
)  # fmt: skip


def recipe(**dpo: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "small", "model": str(WEIGHTS / "llava"), "data": {"train": "a", "test": "b"}, "dpo": dpo}
    )


def trainer(made: Recipe, known: Sizes = LLAVA_7B) -> memory.ProcessMemory:
    return memory.estimate(made, known, prompt=620).processes["trainer"]


def test_a_lora_update_holds_the_weights_once_and_the_adapter_sixteen_bytes_a_number() -> None:
    parts = trainer(recipe(dtype="bfloat16")).parts
    assert parts["weights"] == 2 * LLAVA_7B.parameters
    assert parts["adapter and AdamW"] == 16 * LLAVA_7B.trained
    assert trainer(recipe()).parts["weights"] == 4 * LLAVA_7B.parameters


def test_checkpointing_and_a_shared_prefix_take_less() -> None:
    whole = trainer(recipe(dtype="bfloat16")).parts["activations"]
    assert trainer(recipe(dtype="bfloat16", gradient_checkpointing=True)).parts["activations"] < whole / 5
    assert trainer(recipe(dtype="bfloat16", shared_prefix=False)).parts["activations"] > 1.5 * whole
    assert trainer(recipe(dtype="bfloat16", batch_size=8)).parts["activations"] == pytest.approx(whole / 2, rel=0.1)


def test_a_full_update_holds_masters_gradients_and_moments() -> None:
    parts = trainer(recipe(train="full"), dataclasses.replace(LLAVA_7B, trained=LLAVA_7B.parameters)).parts
    assert parts["weights"] + parts["gradients, AdamW, reference"] == 16 * LLAVA_7B.parameters


def test_what_is_certain_is_refused_and_what_is_likely_is_told() -> None:
    made = memory.estimate(recipe(dtype="bfloat16"), LLAVA_7B, prompt=620)

    def found(free: int, strict: bool) -> list[tuple[str, str]]:
        smaller = dataclasses.replace(made, place=Place("a card", free, True))
        return [(each.code, each.severity) for each in memory.too_large(smaller, strict=strict)]

    sure, total = made.processes["trainer"].certain, made.processes["trainer"].total
    assert found(total, True) == []
    assert found(total - 1, True) == [("UPDATE_NEEDS_MEMORY", "error")]
    assert found(total - 1, False) == [("UPDATE_NEEDS_MEMORY", "warning")]
    assert found(sure - 1, False) == [("UPDATE_NEEDS_MEMORY", "error")]


def test_the_playgrounds_model_is_counted_without_its_weights() -> None:
    known, found = sizes(recipe())
    assert found == []
    assert known is not None
    assert (known.family, known.modules, known.layers, known.width, known.shared) == ("llava", 28, 4, 128, True)
    assert known.parameters == 1_258_688
    assert known.trained == 157_696
    whole, _ = sizes(recipe(train="full"))
    assert whole is not None
    assert (whole.modules, whole.trained < whole.parameters) == (0, True)


def test_a_model_whose_layers_differ_is_counted_by_the_widest(tmp_path: Path) -> None:
    """Gemma 4: full layers have heads of 32, sliding ones of 16; its config refuses to give a single figure."""
    gemma = families.make(tmp_path / "gemma4", "gemma4")
    known, found = sizes(recipe().model_copy(update={"model": str(gemma)}))
    assert not found
    assert known is not None
    assert (known.family, known.layers, known.kept) == ("gemma4", 4, 2 * 32)


def test_a_disk_that_is_too_small_is_told_by_the_directory_that_is_there(tmp_path: Path) -> None:
    wanted = disk.needed(recipe(), LLAVA_7B, prompts=512, image_bytes=100_000)
    checkpoints = 24 * LLAVA_7B.trained  # two inside an update
    assert 3 * (4 * LLAVA_7B.trained + 512 * 100_000) < wanted - checkpoints < GIB
    ((code, message, severity),) = [
        (each.code, each.message, each.severity)
        for each in disk.too_full(1 << 60, tmp_path / "not/there/yet", strict=True)
    ]
    assert (code, severity) == ("DISK_TOO_SMALL", "error")
    assert f"{tmp_path} has" in message


@pytest.mark.parametrize(
    ("rate", "pairs", "noise", "found"),
    [
        (5e-6, 24, 0.02, ["UPDATE_TOO_SMALL"]),
        (2e-4, 64, 0.02, []),
        (5e-6, 24, 1e-6, []),  # float32
        (5e-6, 10_000, 0.02, []),  # many steps
    ],
)
def test_an_update_too_small_for_the_arrival_gate_is_a_warning(
    rate: float, pairs: int, noise: float, found: list[str]
) -> None:
    """The trial's step uses a rate that shows its effect: here 0.1 nats a token at 1e-3."""
    made = recipe(learning_rate=rate, batch_size=16)
    assert trial_rate(made) == 1e-3
    findings = too_small(made, [0.1, -0.1], noise=noise, pairs=pairs)
    assert [each.code for each in findings] == found
    assert all(each.severity == "warning" and "raise dpo.learning_rate" in each.fix for each in findings)
    assert too_small(recipe(train="full"), [0.0, 0.0], noise=0.1, pairs=1) == []


def test_time_is_scaled_from_the_trial_or_taken_from_the_runs_own_iterations(tmp_path: Path) -> None:
    trial = Trial(prompt_seconds=0.5, timed=8, pairs=2, pair_seconds=0.25)
    told = duration.by_trial(recipe(), trial, prompts=100, held_out=80)
    assert told.iteration == pytest.approx(100 * 0.5 + 200 * 0.25 + 80 * 0.5 / 8)
    assert told.run == pytest.approx(3 * told.iteration + 5)
    assert "8 prompts and one step" in str(told)
    assert duration.by_trial(recipe(), Trial(), prompts=1, held_out=1).run is None
    assert duration.by_run(recipe(), tmp_path) is None
    write_json(tmp_path / "metrics.json", [{"iteration": 0, "seconds": 9.0}, {"iteration": 1, "seconds": 60.0}])
    known = duration.by_run(recipe(), tmp_path)
    assert known is not None
    assert (known.iteration, known.run) == (60.0, 120.0)


def test_a_finding_is_a_sentence_and_its_fix() -> None:
    found = found_by(NotFound("there is no a; take b", reason="A_NOT_FOUND"))
    assert (found.code, found.message, found.fix, str(found)) == (
        "A_NOT_FOUND", "there is no a", "take b", "there is no a; take b",
    )  # fmt: skip
    assert found_by(InvalidInput("bad.", reason="BAD")).message == "bad"
    assert found_by(InvalidInput("bad.", reason="BAD")).fix
    worth_a_look = Finding("B", "b", "do it", "warning")
    assert refuse([worth_a_look]) == [worth_a_look]
    with pytest.raises(PreconditionFailed, match=r"^c; do it\. d; do that$") as caught:
        refuse([worth_a_look, Finding("C", "c", "do it"), Finding("D", "d", "do that")])
    assert caught.value.reason == "C"


def test_an_update_in_a_job_of_the_cluster_runs_elsewhere() -> None:
    job = ["python", "-m", "sightline_trainer.job", "template.yaml"]
    assert elsewhere(recipe(launch=job))
    assert not elsewhere(recipe(launch=["accelerate", "launch"]))
