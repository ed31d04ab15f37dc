"""The index of runs: which files are read, and when."""

import shutil
from pathlib import Path

import pytest
from sightline_trainer import run_index
from sightline_trainer.run_index import RunEntry, RunIndex
from sightline_trainer.runs import RunDirectory


def run(root: Path, name: str, **facts: object) -> RunDirectory:
    made = RunDirectory(root / name)
    made.root.mkdir(parents=True)
    made.set_state("queued", **facts)
    return made


def test_a_run_is_read_again_only_when_its_file_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plainly = run_index._read

    def counted(run: RunDirectory) -> RunEntry:
        read.append(run.id)
        return plainly(run)

    monkeypatch.setattr(run_index, "_read", counted)
    old, new = run(tmp_path, "old", request_id="1"), run(tmp_path, "new", request_id="2")
    run(tmp_path, "of-the-command-line")
    index = RunIndex(tmp_path)
    assert [each.id for each in index.list()] == ["new", "old"], "newest first, and only those of the service"
    assert len(read) == 3
    read.clear()
    index.list()
    found = index.of_request("1")
    assert found is not None
    assert found.id == "old"
    assert index.of_request("3") is None
    assert read == []
    old.set_state("running")
    index.list()
    assert read == ["old"]
    shutil.rmtree(new.root)
    assert [each.id for each in index.list()] == ["old"]
    (old.root / "run.json").write_text("{")
    assert [each.id for each in index.list()] == ["old"], "one that cannot be read may be the service's"
    assert index.of_request("1") is None
