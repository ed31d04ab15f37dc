"""Files of weights, checked before loading: those that do not fit, change nothing or are not finite are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sightline import PreconditionFailed
from sightline_sampler.engines.remote.merge import merge
from sightline_sampler.engines.tensorfiles import check_adapter, check_checkpoint, tensors_in

CONFIG = {"architectures": ["LlavaForConditionalGeneration"]}
Arrays = dict[str, np.ndarray]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    tensors = {
        "language_model.model.layers.0.self_attn.q_proj.weight": random.standard_normal((6, 4)),
        "language_model.model.layers.1.self_attn.q_proj.weight": random.standard_normal((6, 4)),
        "vision_tower.encoder.layers.0.mlp.fc1.weight": random.standard_normal((8, 4)),
    }
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, directory / "model.safetensors")
    return directory


def checkpoint(base: Path, change: Callable[[Arrays], None], config: object = CONFIG) -> Path:
    directory = base.parent / "policy"
    directory.mkdir()
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def adapter(base: Path, modules: list[str], *, b: float = 1.0, into: int = 4, **config: object) -> Path:
    directory = base.parent / "adapter"
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, **config}))
    tensors: Arrays = {}
    for module in modules:
        out = 8 if "fc1" in module else 6
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.ones((2, into), np.float16)
        tensors[f"base_model.model.{module}.lora_B.weight"] = np.full((out, 2), b, np.float16)
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


Q0, Q1 = (f"model.language_model.layers.{i}.self_attn.q_proj" for i in (0, 1))


def test_a_checkpoint_that_changes_something_fits(base: Path) -> None:
    def nudge(tensors: Arrays) -> None:
        tensors["language_model.model.layers.1.self_attn.q_proj.weight"][0, 0] += 1

    staged = check_checkpoint(checkpoint(base, nudge), base)
    assert (staged.tensors, staged.modules) == (3, 1)


def _lose(tensors: Arrays) -> None:
    tensors.pop("vision_tower.encoder.layers.0.mlp.fc1.weight")


def _gain(tensors: Arrays) -> None:
    tensors["lm_head.weight"] = np.ones((2, 2), np.float32)


def _reshape(tensors: Arrays) -> None:
    tensors["vision_tower.encoder.layers.0.mlp.fc1.weight"] = np.ones((4, 8), np.float32)


def _explode(tensors: Arrays) -> None:
    tensors["vision_tower.encoder.layers.0.mlp.fc1.weight"][3, 3] = np.inf


@pytest.mark.parametrize(
    ("change", "config", "names"),
    [
        (_lose, CONFIG, "lacks 1, for example vision_tower"),
        (_gain, CONFIG, "no place for 1, for example lm_head"),
        (_reshape, CONFIG, "of another shape"),
        (_explode, CONFIG, "not finite"),
        (lambda tensors: None, CONFIG, "changes nothing"),
        (_gain, {"architectures": ["Other"]}, "is a "),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    base: Path, change: Callable[[Arrays], None], config: object, names: str
) -> None:
    with pytest.raises(PreconditionFailed, match=names):
        check_checkpoint(checkpoint(base, change, config), base)


def test_an_adapter_fits_whatever_wrappers_stand_before_its_names(base: Path) -> None:
    staged = check_adapter(adapter(base, [Q0, Q1.replace("model.language_model", "language_model.model")]), base,
                           most_rank=2, tower=False)  # fmt: skip
    assert (staged.tensors, staged.modules) == (4, 2)


def test_an_adapter_of_the_tower_needs_a_server_that_takes_it(base: Path) -> None:
    directory = adapter(base, [Q0, "model.vision_tower.encoder.layers.0.mlp.fc1"])
    with pytest.raises(PreconditionFailed, match="outside the language model"):
        check_adapter(directory, base, most_rank=16, tower=False)
    assert check_adapter(directory, base, most_rank=16, tower=True).modules == 2


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"modules": ["model.language_model.layers.7.self_attn.q_proj"]}, "no place for 1"),
        ({"modules": [Q0], "into": 5}, "of another shape"),
        ({"modules": [Q0], "b": 0.0}, "changes nothing"),
        ({"modules": [Q0], "b": -0.0}, "changes nothing"),
        ({"modules": [Q0], "b": float("nan")}, "not finite"),
        ({"modules": [Q0], "r": 64}, "rank 64 is over"),
        ({"modules": [Q0], "modules_to_save": ["lm_head"]}, "also trains lm_head whole"),
        ({"modules": [Q0], "peft_type": "IA3"}, "not a plain LoRA"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(base: Path, options: dict[str, object], names: str) -> None:
    with pytest.raises(PreconditionFailed, match=names):
        check_adapter(adapter(base, **options), base, most_rank=16, tower=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}", b"\xff" * 40])
def test_a_broken_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(PreconditionFailed, match="holds no"):
        tensors_in(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_is_w_plus_s_b_a_rounded_as_pytorch_does(base: Path, tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    whole = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load(base / "model.safetensors").items()}
    save(whole, base / "model.safetensors")
    directory = adapter(base, [Q0], lora_alpha=6)
    merge(directory, base, tmp_path / "merged")
    found = load(tmp_path / "merged/model.safetensors")
    changed = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        wanted = (tensor.float() + 3.0 * torch.full((6, 4), 2.0)).to(tensor.dtype) if name == changed else tensor
        assert torch.equal(found[name], wanted), name
    assert json.loads((tmp_path / "merged/config.json").read_text()) == CONFIG
    assert not list(tmp_path.glob(".merged*"))


def test_what_is_not_w_plus_s_b_a_is_not_merged(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PreconditionFailed, match="use_dora"):
        merge(adapter(base, [Q0], lora_alpha=6, use_dora=True), base, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
