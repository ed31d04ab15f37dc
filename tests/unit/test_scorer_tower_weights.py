"""One tower's weights, read from the file into a model that was made without any."""

from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import scorer_models
import torch
from safetensors.torch import load_file, save_file
from sightline_scorer.triton import tower_weights

FILE = "open_clip_model.safetensors"


@pytest.fixture(scope="module", params=["tiny", "siglip"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = getattr(scorer_models, request.param)(tmp_path_factory.mktemp(request.param))
    return found


def made(directory: Path) -> Any:
    return partial(open_clip.create_model, f"local-dir:{directory}")


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_tower_has_the_files_weights_and_the_other_one_is_not_read(directory: Path, tower: str) -> None:
    wanted = open_clip.create_model(f"local-dir:{directory}").state_dict()
    model = tower_weights.unfilled(made(directory), directory / FILE)
    assert model is not None
    state = model.state_dict()
    for tensor in state.values():
        tensor.fill_(7)
    tower_weights.fill(model, directory / FILE, getattr(tower_weights, f"of_{tower}"))
    read = {name for name in wanted if name.startswith("visual.") == (tower == "image")}
    assert 0 < len(read) < len(wanted)
    for name, tensor in state.items():
        assert torch.equal(tensor, wanted[name] if name in read else torch.full_like(tensor, 7)), name


def test_models_made_afterwards_are_drawn(directory: Path) -> None:
    assert tower_weights.unfilled(made(directory), directory / FILE) is not None
    torch.manual_seed(0)
    assert torch.nn.Linear(3, 3).weight.abs().sum() > 0
    assert torch.nn.LayerNorm(3).weight.sum().item() == 3.0


@pytest.mark.parametrize("change", ["another name", "another shape", "another number type", "no safetensors file"])
def test_open_clip_reads_what_has_another_layout(directory: Path, tmp_path: Path, change: str) -> None:
    state = load_file(directory / FILE)
    name = next(iter(state))
    tensor = state.pop(name)
    state |= {
        "another name": {f"module.{name}": tensor},
        "another shape": {name: tensor[None]},
        "another number type": {name: tensor.half()},
        "no safetensors file": {},
    }[change]
    path = tmp_path / FILE
    if change == "no safetensors file":
        torch.save(state, path)
    else:
        save_file(state, path)
    assert tower_weights.unfilled(made(directory), path) is None
