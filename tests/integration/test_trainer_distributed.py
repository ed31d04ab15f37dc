"""One update on several processes: the same loss and policy as on one, and typed errors."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_models import dpo_recipe, make_family, random_pairs
from safetensors.torch import load_file
from sightline.errors import InternalError, PreconditionFailed
from sightline_trainer.dpo.launch import run_update
from sightline_trainer.dpo.update import Update
from sightline_trainer.recipe import Recipe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ON_CPU = ROOT / "tests/sharded_on_cpu.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("dpo") / "llava", "llava")


@pytest.fixture(scope="module")
def pairs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pairs of four prompts."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    random_pairs(model, [(prompt, j, j + 1) for prompt in range(4) for j in (0, 2)]).to_parquet(path)
    return path


def run(recipe: Recipe, pairs: Path, root: Path, **values: Any) -> Update:
    given = {"previous": None, "seed": 0, "iteration": 1, "progress": lambda done, total: None, **values}
    return run_update(recipe, pairs, policy=root / "policy", work=root / "work", **given)


def assert_same_policy(one: Path, two: Path) -> None:
    mine, theirs = (load_file(next(policy.glob("*.safetensors"))) for policy in (one, two))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert (theirs[name] - tensor).norm() <= 1e-4 * tensor.norm(), name


def test_two_processes_do_what_one_does_with_the_same_batch(model: Path, pairs: Path, tmp_path: Path) -> None:
    values = {"epochs": 2, "learning_rate": 1e-3}
    steps: list[tuple[int, int]] = []
    one = run(dpo_recipe(model, batch_size=4, **values), pairs, tmp_path / "one")
    two = run(
        dpo_recipe(model, batch_size=2, launch=TORCHRUN, **values),
        pairs,
        tmp_path / "two",
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps[-1] == (40, 40)
    for name in ("loss", "chosen_logp", "rejected_logp", "margin", "accuracy", "logratio_to_reference", "steps"):
        assert two.metrics[name] == pytest.approx(one.metrics[name], rel=1e-4), name
    assert_same_policy(tmp_path / "one/policy", tmp_path / "two/policy")
    for a, b in zip(one.probes, two.probes, strict=True):
        assert b.logprobs == pytest.approx(a.logprobs, abs=1e-4)


@pytest.mark.parametrize(
    "pieces",
    [
        {
            "loss": {"sigmoid": 1.0, "image": 0.5, "anchor": 0.5},
            "view": {"kind": "diffusion", "step": 900},
            "token_weights": {"by": "difference", "run": 1},
            "guidance": {"scale": 1.3},
            "token_kl": 0.1,
        },
        {"reference": {"of": {"base": 1.0, "previous": 1.0, "ema": 1.0}, "adaptive": True}},
    ],
    ids=["rows and tokens", "references"],
)
def test_two_processes_do_what_one_does_with_a_methods_pieces(
    model: Path, pairs: Path, tmp_path: Path, pieces: dict[str, Any]
) -> None:
    values = {"epochs": 2, "learning_rate": 1e-3}
    run(dpo_recipe(model, batch_size=4, **values), pairs, tmp_path / "before")
    before = tmp_path / "before/policy"
    one = run(dpo_recipe(model, batch_size=4, **values, **pieces), pairs, tmp_path / "one", previous=before)
    shared = dpo_recipe(model, batch_size=2, launch=TORCHRUN, **values, **pieces)
    two = run(shared, pairs, tmp_path / "two", previous=before)
    for name in ("loss", "chosen_logp", "rejected_logp", "margin", "logratio_to_reference"):
        assert two.metrics[name] == pytest.approx(one.metrics[name], rel=1e-4), name
    assert_same_policy(tmp_path / "one/policy", tmp_path / "two/policy")


def sharded(directory: Path, *, cpu: bool, precision: str = "no") -> list[str]:
    """A launcher with the shipped configuration, for two processes."""
    config = directory / "fsdp.yaml"
    text = (ROOT / "recipes/accelerate/fsdp.yaml").read_text()
    for shipped, here in (
        ("num_processes: 8", "num_processes: 2"),
        ("mixed_precision: bf16", f"mixed_precision: '{precision}'"),
        ("use_cpu: false", f"use_cpu: {str(cpu).lower()}"),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    config.write_text(text)
    return ["accelerate", "launch", "--config_file", str(config), *([str(ON_CPU)] if cpu else [])]


def assert_same_update(one: Update, two: Update, root: Path) -> None:
    for name in ("loss", "chosen_logp", "rejected_logp", "margin", "update_norm", "changed_elements"):
        assert two.metrics[name] == pytest.approx(one.metrics[name], rel=1e-4), name
    assert_same_policy(root / "one/policy", root / "two/policy")
    for a, b in zip(one.probes, two.probes, strict=True):
        assert b.logprobs == pytest.approx(a.logprobs, abs=1e-4)


@pytest.mark.parametrize("train", ["full", "lora"])
def test_an_update_that_fsdp_shards_is_that_of_one_process(
    train: str, model: Path, pairs: Path, tmp_path: Path
) -> None:
    """FSDP2 over gloo: reference, shared prefix, steps, changed weights, the gathered checkpoint and the probes."""
    values = {"epochs": 1, "learning_rate": 1e-3, "train": train}
    one = run(dpo_recipe(model, batch_size=4, **values), pairs, tmp_path / "one")
    two = run(dpo_recipe(model, batch_size=2, launch=sharded(tmp_path, cpu=True), **values), pairs, tmp_path / "two")
    assert two.metrics["shared_prefix"] == 1.0
    assert_same_update(one, two, tmp_path)


def test_sharded_masters_are_float32_where_bfloat16_computes(model: Path, pairs: Path, tmp_path: Path) -> None:
    values = {"epochs": 1, "learning_rate": 5e-6, "train": "full", "dtype": "bfloat16"}
    launch = sharded(tmp_path, cpu=True, precision="bf16")
    two = run(dpo_recipe(model, batch_size=2, launch=launch, **values), pairs, tmp_path / "two")
    assert two.metrics["changed_elements"] > 0.99  # bfloat16 weights would keep most of theirs
    tensors = load_file(tmp_path / "two/policy/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_accelerate_launch_shards_the_model_by_fsdp(model: Path, pairs: Path, tmp_path: Path) -> None:
    values = {"epochs": 1, "learning_rate": 1e-3}
    one = run(dpo_recipe(model, batch_size=4, **values), pairs, tmp_path / "one")
    launch = sharded(tmp_path, cpu=False)
    two = run(dpo_recipe(model, batch_size=2, launch=launch, **values), pairs, tmp_path / "two")
    assert_same_update(one, two, tmp_path)


def test_a_loss_that_is_not_finite_on_two_processes_is_the_same_typed_error(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    values = {"batch_size": 2, "learning_rate": 1e30, "warmup_ratio": 0.0, "schedule": "constant", "launch": TORCHRUN}
    with pytest.raises(InternalError, match="NaN or infinite") as caught:
        run(dpo_recipe(model, **values), pairs, tmp_path)
    assert caught.value.reason == "LOSS_NOT_FINITE"
    assert not (tmp_path / "policy").exists()


def test_a_launcher_that_is_not_there_or_ends_is_said_so(model: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(PreconditionFailed, match="no-such-launcher"):
        run(dpo_recipe(model, launch=["no-such-launcher"]), pairs, tmp_path)
    with pytest.raises(InternalError, match="ended with code") as caught:
        run(dpo_recipe(model, launch=[sys.executable, "-c", "raise SystemExit('lost')"]), pairs, tmp_path)
    assert caught.value.reason == "UPDATE_PROCESS_FAILED"
    assert "lost" in str(caught.value)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
