"""Fetching weights: complete, checked, and only once."""

import hashlib
from pathlib import Path

import pytest
from sightline.errors import DataCorrupted, InvalidInput, NotFound, PreconditionFailed
from sightline_chassis.fetch import fetch, main
from sightline_chassis.remote_directory import RemoteDirectory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "deep").mkdir(parents=True)
    (root / "config.json").write_text("{}")
    (root / "deep/model.safetensors").write_bytes(b"weights" * 1000)
    return root


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_all_files_come_and_come_once(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    wanted = {"deep/model.safetensors": digest(source / "deep/model.safetensors")}
    assert fetch(f"file://{source}", target, wanted) == ["config.json", "deep/model.safetensors"]
    assert (target / "deep/model.safetensors").read_bytes() == (source / "deep/model.safetensors").read_bytes()
    assert fetch(f"file://{source}", target, wanted) == []


def test_a_file_that_was_cut_off_or_changed_comes_again(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    wanted = {"deep/model.safetensors": digest(source / "deep/model.safetensors")}
    fetch(f"file://{source}", target, wanted)
    (target / "config.json").write_text("{")
    (target / "deep/model.safetensors").write_bytes(b"WEIGHTS" * 1000)  # the same size
    assert fetch(f"file://{source}", target, wanted) == ["config.json", "deep/model.safetensors"]


def test_a_wrong_digest_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(DataCorrupted, match=r"config\.json has SHA-256"):
        fetch(f"file://{source}", target, {"config.json": "0" * 64})
    assert not [path for path in target.rglob("*") if path.is_file()]


def test_what_is_not_there_is_said(source: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"has no other\.json"):
        fetch(f"file://{source}", tmp_path / "target", {"other.json": "0" * 64})
    with pytest.raises(NotFound, match="contains no files"):
        fetch(f"file://{source}/nowhere", tmp_path / "target", {})
    with pytest.raises(InvalidInput, match="nope"):
        fetch("nope://x/y", tmp_path / "target", {})


def test_the_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        f"file://{source}",
        str(tmp_path / "target"),
        "--sha256",
        f"config.json={digest(source / 'config.json')}",
    ]
    assert main(arguments) == 0
    assert "2 files fetched" in capsys.readouterr().out
    assert main([f"file://{source}", str(tmp_path / "other"), "--sha256", "config.json=00"]) == 1
    assert "error:" in capsys.readouterr().err


def test_nothing_larger_than_the_bound_comes(source: Path, tmp_path: Path) -> None:
    with pytest.raises(PreconditionFailed, match="7002 bytes, but at most 7001 may be fetched"):
        fetch(f"file://{source}", tmp_path / "target", {}, most_bytes=7001)
    remote = RemoteDirectory(f"file://{source}")
    with pytest.raises(PreconditionFailed, match="is larger than the 10 bytes that may still be fetched"):
        remote.fetch("deep/model.safetensors", tmp_path / "target/model", most_bytes=10)
    assert not [path for path in (tmp_path / "target").rglob("*") if path.is_file()]
