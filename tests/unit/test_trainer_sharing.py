"""The shared prefix compared with TRL's own rows, by family and loss: within 1e-4 relative in fp32."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.utils
from datasets import Dataset
from dpo_models import FAMILIES, dpo_recipe, make_family, random_pairs, shake
from sightline.errors import PreconditionFailed
from sightline_trainer.dpo import head, last_layer, tiles
from sightline_trainer.dpo.collator import PairCollator
from sightline_trainer.dpo.loss_names import TRL
from sightline_trainer.dpo.reference_logprobs import add_reference, self_check
from sightline_trainer.dpo.setup import make_trainer
from sightline_trainer.dpo.support import base_of
from transformers import AutoModelForImageTextToText
from trl.kernels import ChunkedLogProbFunction

# Two prompts; ragged lengths; a response that stands in three pairs, one of a single token would be number -1.
LAYOUT = [(0, 1, 2), (0, 1, 3), (0, 4, 1), (1, 4, 0)]
SETTINGS = {"exo_pair": {"label_smoothing": 0.01}, "robust": {"label_smoothing": 0.1}}


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_family(tmp_path_factory.mktemp(name) / "model", name)
        return made[name]

    return get


@pytest.fixture(autouse=True)
def long_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """These models' prompts and vocabularies are small; they go the way of large ones."""
    monkeypatch.setattr(last_layer, "LEAST_PREFIX", 1)
    monkeypatch.setattr(head, "LEAST_VOCABULARY", 1)


def prepared(model: Path, pairs: Dataset, work: Path, **dpo: Any) -> Any:
    """A trainer that knows its reference and differs from it."""
    trainer = make_trainer(dpo_recipe(model, **dpo), pairs, previous=None, work=work, seed=0)
    add_reference(trainer, lambda done, total: None)
    shake(trainer.model)
    return trainer


def step(trainer: Any, rows: list[dict[str, Any]], *, shared: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch, with packed rows or TRL's rows."""
    collator = trainer.data_collator
    if not shared:
        collator = PairCollator(collator.family, columns=collator.columns)
        collator.reference = trainer.data_collator.reference
    batch = trainer._prepare_inputs(collator(rows))
    assert ("shared_prefix" in batch) == shared
    trainer.model.train()
    trainer.model.zero_grad()
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def assert_equal(trainer: Any, tolerance: float = 1e-4) -> None:
    rows = list(trainer.train_dataset)
    loss, gradients = step(trainer, rows, shared=False)
    for _ in range(2):  # the second time from kept image features
        ours, our_gradients = step(trainer, rows, shared=True)
        assert ours == pytest.approx(loss, rel=tolerance)
        assert our_gradients.keys() == gradients.keys()
        assert gradients, "nothing was trained"
        # A gradient that is zero except for rounding, such as a key's bias, is compared with the whole gradient's size.
        rounding = 1e-6 * torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        for name, expected in gradients.items():
            assert (our_gradients[name] - expected).norm() <= tolerance * expected.norm() + rounding, name


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_has_trls_loss_and_gradients(name: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    model = family(name)
    assert_equal(prepared(model, random_pairs(model, LAYOUT), tmp_path))


@pytest.mark.parametrize("loss", TRL)
def test_each_loss_of_trl_is_the_same_on_llava(loss: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    model = family("llava")
    values = {"loss": {loss: 1.0}, **SETTINGS.get(loss, {})}
    assert_equal(prepared(model, random_pairs(model, LAYOUT), tmp_path, **values))


@pytest.mark.slow
@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("loss", TRL)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_loss_and_mode(
    name: str, loss: str, checkpointing: bool, train: str, family: Callable[[str], Path], tmp_path: Path
) -> None:
    model = family(name)
    values = {"loss": {loss: 1.0}, "gradient_checkpointing": checkpointing, "train": train, **SETTINGS.get(loss, {})}
    trainer = prepared(model, random_pairs(model, LAYOUT), tmp_path, **values)
    if checkpointing:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal(trainer)


@pytest.mark.parametrize(
    "values",
    [
        {"train": "full"},
        {"train": "full", "train_vision": True},
        {"gradient_checkpointing": True},
        {"loss": {"sigmoid": 1.0, "sft": 0.3}, "ld_alpha": 0.5},
        {"wpo": True},
        {"f_divergence": "js_divergence"},
        {"lora": {"target_modules": r".*(language_model|vision).*\.(q_proj|v_proj)"}},
    ],
    ids=["full", "vision", "checkpointing", "ld_dpo", "wpo", "f_dpo", "adapted_tower"],
)
def test_each_way_to_train_is_the_same_on_llava(
    values: dict[str, Any], family: Callable[[str], Path], tmp_path: Path
) -> None:
    model = family("llava")
    trainer = prepared(model, random_pairs(model, LAYOUT), tmp_path, **values)
    if values.get("gradient_checkpointing"):
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal(trainer)
    still = not ("train_vision" in values or "vision" in str(values.get("lora")))
    assert (trainer.data_collator.sharing.cache is not None) == still


def test_bfloat16_is_as_near_as_its_rounding(family: Callable[[str], Path], tmp_path: Path) -> None:
    model = family("llava")
    trainer = prepared(model, random_pairs(model, LAYOUT), tmp_path, dtype="bfloat16")
    assert 0 <= self_check(trainer) < 2 * torch.finfo(torch.bfloat16).eps
    assert_equal(trainer, tolerance=0.1)


def test_prompts_from_a_length_on_leave_the_last_layer_and_trls_head(
    family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs on short prompts keep the bits that they had before."""
    model = family("llava")
    trainer = prepared(model, random_pairs(model, LAYOUT), tmp_path)
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    layer = base_of(trainer.model).get_decoder().layers[-1]
    ran: list[int] = []
    layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: ran.append(args[0].shape[1]))
    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", _Counted)
    _Counted.calls = 0
    everything, pack = batch["shared_prefix"].input_ids.shape[1], batch["shared_prefix"]
    inputs = trainer._model_inputs(batch)
    trainer.model(**inputs)
    assert ran == [len(pack.kept.unique())]
    assert ran[0] < everything
    assert _Counted.calls == 0
    monkeypatch.setattr(last_layer, "LEAST_PREFIX", pack.prefix + 1)
    monkeypatch.setattr(head, "LEAST_VOCABULARY", 1 << 20)
    trainer.model(**inputs)
    assert ran[1] == everything
    assert _Counted.calls == 1


class _Counted(ChunkedLogProbFunction):  # type: ignore[misc, unused-ignore]
    calls = 0

    @classmethod
    def apply(cls, *args: Any) -> Any:
        cls.calls += 1
        return ChunkedLogProbFunction.apply(*args)


def test_a_response_of_several_pairs_and_an_image_of_several_prompts_are_forwarded_once(
    family: Callable[[str], Path], tmp_path: Path
) -> None:
    model = family("llava")
    pairs = random_pairs(model, [(0, 1, 2), (0, 1, 3), (1, 4, 1)])
    same = pairs[0]["images"]
    rows = [{**row, "images": same} for row in pairs]
    trainer = prepared(model, Dataset.from_list(rows).cast(pairs.features), tmp_path)
    trainer.data_collator.sharing.cache.clear()
    encoded: list[int] = []
    backbone = trainer.model.get_base_model().base_model
    tower = backbone.get_image_features
    backbone.get_image_features = lambda **inputs: encoded.append(len(inputs["pixel_values"])) or tower(**inputs)
    for _ in range(2):
        batch = trainer.data_collator(list(trainer.train_dataset))
        pack = batch["shared_prefix"]
        assert [len(group.branches) for group in pack.groups] == [3, 2]
        lengths = [len(row[f"{side}_ids"]) for row in trainer.train_dataset for side in ("chosen", "rejected")]
        assert pack.labels.shape[1] == sum(lengths) - len(trainer.train_dataset[0]["chosen_ids"])
        trainer.compute_loss(trainer.model, batch)
    assert encoded == [1], "the same picture, over two prompts and two steps"


def test_features_are_kept_within_the_bound_and_pixels_are_made_again_beyond_it(
    family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family("llava")
    trainer = prepared(model, random_pairs(model, LAYOUT), tmp_path)
    cache = trainer.data_collator.sharing.cache
    cache.clear()
    monkeypatch.setattr(cache, "getsizeof", lambda _: cache.maxsize)  # one image's features fill it
    rows = list(trainer.train_dataset)
    losses = [step(trainer, rows, shared=True)[0] for _ in range(3)]
    assert len(cache) == 1
    assert losses[0] == pytest.approx(losses[2], rel=1e-6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.set_attn_implementation("eager"), "eager"),
        (lambda model: model.set_attn_implementation("eager"), "set dpo.attn_implementation to sdpa"),
        (
            lambda model: setattr(model.config.text_config, "layer_types", ["sliding_attention"] * 2),
            "sliding_attention",
        ),
        (lambda model: setattr(model.config, "model_type", "mllama"), "mllama"),
        (lambda model: setattr(model.config.text_config, "model_type", "mamba"), "mamba"),
        (
            lambda model: setattr(model.config.text_config, "_attn_implementation_internal", "flash_attention_2"),
            "flash_attention_2",
        ),
    ],
    ids=["eager", "key", "sliding", "family", "recurrent", "flash"],
)
def test_what_can_not_share_goes_trls_way_and_one_line_says_why(
    change: Callable[[Any], Any],
    reason: str,
    family: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from sightline_trainer.dpo.sharing import share

    model = AutoModelForImageTextToText.from_pretrained(family("llava"))
    change(model)
    with caplog.at_level(logging.WARNING):
        assert share(model, cache_bytes=1) is None
    assert [reason in record.getMessage() for record in caplog.records] == [True]


def test_the_self_check_refuses_a_pack_that_is_wrong(
    family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family("llava")
    trainer = prepared(model, random_pairs(model, LAYOUT), tmp_path)
    assert self_check(trainer) < 1e-4
    positions = trainer.data_collator.sharing.positions
    # Branches one place too far, as with an off-by-one error.
    monkeypatch.setattr(trainer.data_collator.sharing, "positions", lambda prompt, n: positions(prompt, n + 1)[:, 1:])
    tile = tiles.tile

    def blind(groups: Any, device: Any) -> Any:
        """A mask in which every branch sees the others."""
        right = tile(groups, device)
        return replace(right, tiles=tuple(replace(one, mask=torch.ones_like(one.mask)) for one in right.tiles))

    monkeypatch.setattr("sightline_trainer.dpo.packing.tile", blind)
    with pytest.raises(PreconditionFailed, match="shared_prefix=false"):
        self_check(trainer)
