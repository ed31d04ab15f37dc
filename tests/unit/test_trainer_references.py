"""References: the base model, the previous policy, a moving average, and several combined."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from dpo_models import dpo_recipe, make_family, random_pairs, shake
from pydantic import ValidationError
from sightline_trainer.dpo.method import References
from sightline_trainer.dpo.reference_logprobs import add_reference, token_logprobs
from sightline_trainer.dpo.references import average_of, combined
from sightline_trainer.dpo.saving import save_policy
from sightline_trainer.dpo.setup import make_trainer

LAYOUT = [(0, 1, 2), (0, 1, 3), (1, 4, 0)]
Policies = tuple[str, Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("references") / "llava", "llava")


@pytest.fixture(scope="module")
def pairs(model: Path) -> Dataset:
    return random_pairs(model, LAYOUT)


def made(model: Path, pairs: Dataset, work: Path, previous: Path | None, **dpo: Any) -> Any:
    return make_trainer(dpo_recipe(model, **dpo), pairs, previous=previous, work=work, seed=0)


@pytest.fixture(scope="module", params=["lora", "full"])
def policies(request: pytest.FixtureRequest, model: Path, pairs: Dataset, tmp_path_factory: Any) -> Policies:
    """v000001 and v000002 of a run; the first is the parent of the second."""
    root = tmp_path_factory.mktemp(f"policies-{request.param}")
    for version in (1, 2):
        trainer = made(model, pairs, root / "work", None, train=request.param)
        torch.manual_seed(version)
        shake(trainer.model)
        if request.param == "full":
            with torch.no_grad():
                for each in trainer.model.parameters():
                    each.add_(0.02 * torch.randn_like(each) * each.requires_grad)
        else:
            with torch.no_grad():
                for name, each in trainer.model.named_parameters():
                    if "lora_" in name:
                        each.add_(0.02 * torch.randn_like(each))
        directory = root / f"v{version:06d}"
        directory.mkdir()
        save_policy(trainer, directory)
        (directory / "manifest.json").write_text(json.dumps({"version": version, "parent_version": version - 1}))
    return request.param, root


def sums(trainer: Any) -> torch.Tensor:
    """[2, B] sums of the policy's log-probs."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    return token_logprobs(trainer, batch).sum(dim=1).view(2, -1)


def known(trainer: Any) -> torch.Tensor:
    """[2, B] sums of the reference's log-probs."""
    add_reference(trainer, lambda done, total: None)
    batch = trainer.data_collator(list(trainer.train_dataset))
    return torch.stack([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])


def test_the_policy_before_is_the_reference(
    policies: tuple[str, Path], model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    train, root = policies
    trainer = made(model, pairs, tmp_path, root / "v000002", train=train, reference={"of": {"previous": 1.0}})
    own = sums(trainer)
    assert torch.allclose(known(trainer), own, atol=1e-4)
    base = made(model, pairs, tmp_path, root / "v000002", train=train)
    assert (known(base) - own).abs().max() > 1e-2
    # Only the policy is trained, and no part of the reference.
    assert torch.allclose(sums(trainer), own, atol=1e-5)


@pytest.mark.slow
def test_the_average_is_that_of_the_weights(
    policies: tuple[str, Path], model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    """d = 0.5 and two policies: a quarter of the base, a quarter of the first, half of the second."""
    train, root = policies
    assert average_of(root / "v000002", 0.5) == {root / "v000002": 0.5, root / "v000001": 0.25}
    trainer = made(model, pairs, tmp_path, root / "v000002", train=train, reference={"of": {"ema": 1.0}})
    before = sums(trainer)
    found = known(trainer)
    assert torch.allclose(sums(trainer), before, atol=1e-5)

    tensors: list[dict[str, torch.Tensor]] = []
    for place in (None, root / "v000001", root / "v000002"):
        other = made(model, pairs, tmp_path, place, train=train)
        merged = other.model if train == "full" else other.model.merge_and_unload()
        tensors.append({name: each.detach().clone() for name, each in merged.named_parameters()})
    plain = made(model, pairs, tmp_path, None, train="full")
    with torch.no_grad():
        for name, each in plain.model.named_parameters():
            each.copy_(0.25 * tensors[0][name] + 0.25 * tensors[1][name] + 0.5 * tensors[2][name])
    assert torch.allclose(found, sums(plain), atol=1e-3)


def test_several_are_one_virtual_reference(
    policies: tuple[str, Path], model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    train, root = policies
    of = {"base": 1.0, "previous": 3.0}
    trainer = made(model, pairs, tmp_path, root / "v000002", train=train, reference={"of": of})
    previous, base = sums(trainer), known(made(model, pairs, tmp_path, root / "v000002", train=train))
    expected = -torch.logsumexp(torch.stack([math.log(0.25) - base, math.log(0.75) - previous]), dim=0)
    assert torch.allclose(known(trainer), expected, atol=1e-3)


def test_the_virtual_reference_by_hand() -> None:
    """One pair; log pi of two references: y_w -1 and -2, y_l -3 and -3."""
    given = torch.tensor([[[-1.0], [-3.0]], [[-2.0], [-3.0]]])
    even = References(of={"base": 1.0, "previous": 1.0})
    expected = -math.log(0.5 * math.e + 0.5 * math.e**2)
    assert combined(given, even)[:, 0].tolist() == pytest.approx([expected, -3.0], rel=1e-6)
    # The second is held within half a nat of the first.
    near = References(of={"base": 1.0, "previous": 1.0}, within=0.5)
    expected = -math.log(0.5 * math.e + 0.5 * math.e**1.5)
    assert combined(given, near)[0, 0].item() == pytest.approx(expected, rel=1e-6)
    # They separate the sides by 2 and by 1: shares of two thirds and one third.
    sure = References(of={"base": 1.0, "previous": 1.0}, adaptive=True)
    expected = -math.log(2 / 3 * math.e + 1 / 3 * math.e**2)
    assert combined(given, sure)[0, 0].item() == pytest.approx(expected, rel=1e-6)


def test_settings_that_can_not_be_meant_are_refused(model: Path) -> None:
    for wrong in ({"of": {}}, {"of": {"base": 0.0}}, {"adaptive": True}, {"within": 1.0}, {"of": {"other": 1.0}}):
        with pytest.raises(ValidationError):
            References.model_validate(wrong)
    with pytest.raises(ValidationError, match="token_kl"):
        dpo_recipe(model, token_kl=0.1, reference={"of": {"previous": 1.0}})
