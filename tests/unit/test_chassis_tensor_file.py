"""Files of tensors, whole and damaged, as released models bring them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sightline_chassis.tensor_file import read_tensors


class Code:
    """What a pickle may hold besides tensors."""


def damaged(kind: str, file: Path) -> None:
    whole = {"a": torch.ones(2, 3)}
    match kind:
        case "page":
            file.write_text("<html>404: not found</html>")
        case "empty":
            file.touch()
        case "code":
            torch.save({"a": Code()}, file)
        case "list":
            torch.save([whole["a"]], file)
        case "short":
            save_file(whole, file) if file.suffix == ".safetensors" else torch.save(whole, file)
            file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.bin"])
def test_tensors_are_read_by_either_library(name: str, tmp_path: Path) -> None:
    whole = {"a": torch.arange(6.0).view(2, 3)}
    file = tmp_path / name
    save_file(whole, file) if file.suffix == ".safetensors" else torch.save(whole, file)
    for mmap in (False, True):
        assert read_tensors(file, mmap=mmap)["a"].tolist() == whole["a"].tolist()


@pytest.mark.field
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("kind", ["page", "empty", "short", "code", "list"])
def test_what_is_no_file_of_tensors_is_said_in_a_sentence(kind: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    damaged(kind, file)
    with pytest.raises(ValueError, match=f"^{file} (is damaged, or holds something else|holds a list)") as caught:
        read_tensors(file)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.field
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_pointer_of_git_lfs_says_how_to_fetch_the_weights(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        read_tensors(tmp_path / name)


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pt"):
        with pytest.raises(FileNotFoundError):
            read_tensors(tmp_path / name)
