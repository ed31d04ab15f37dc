"""Policy manifests: what is written can be checked, and every difference is named."""

import hashlib
import json
import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sightline.sampler.manifest import (
    ManifestError,
    PolicyManifest,
    manifest_digest,
    model_digest,
    policy_dirname,
    read_arrival,
    read_manifest,
    verify,
    write_arrival,
    write_manifest,
)

BASE = "ab" * 32


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    directory = tmp_path / policy_dirname(3)
    (directory / "more").mkdir(parents=True)
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    (directory / "more/notes.txt").write_bytes(b"")
    manifest = PolicyManifest(3, 2, "lora", BASE, run_id="demo", iteration=3, metrics={"loss": 0.5})
    write_manifest(directory, manifest)
    return directory


def test_what_is_written_is_read_and_verified(policy: Path) -> None:
    manifest = verify(policy)
    assert manifest == read_manifest(policy)
    assert manifest.files == {
        "adapter_model.safetensors": hashlib.sha256(b"weights").hexdigest(),
        "more/notes.txt": hashlib.sha256(b"").hexdigest(),
    }
    assert (manifest.version, manifest.parent_version, manifest.kind, manifest.base_digest) == (3, 2, "lora", BASE)
    assert (manifest.run_id, manifest.iteration, manifest.metrics) == ("demo", 3, {"loss": 0.5})
    assert manifest.created.endswith("+00:00")
    assert manifest_digest(policy) == hashlib.sha256((policy / "manifest.json").read_bytes()).hexdigest()
    assert sorted(os.listdir(policy)) == ["adapter_model.safetensors", "manifest.json", "more"]


def test_writing_again_covers_new_files_and_not_the_manifest_itself(policy: Path) -> None:
    (policy / "new").write_bytes(b"1")
    again = write_manifest(policy, read_manifest(policy))
    assert set(again.files) == {"adapter_model.safetensors", "more/notes.txt", "new"}
    verify(policy)


def test_the_manifest_comes_last(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer killed while files are synced leaves a directory that is recognised as half-written."""
    (policy / "manifest.json").unlink()

    def die(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(policy, PolicyManifest(3, 2, "lora", BASE))
    with pytest.raises(ManifestError, match="half-written") as error:
        verify(policy)
    assert error.value.reason == "HALF_WRITTEN"


def test_every_file_is_synced_before_the_manifest_is_renamed(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, rename = os.fsync, Path.rename

    def note_sync(handle: int) -> None:
        steps.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    def note_rename(self: Path, to: Path) -> Path:
        steps.append("rename")
        return rename(self, to)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    write_manifest(policy, PolicyManifest(3, 2, "lora", BASE))
    before, after = steps[: steps.index("rename")], steps[steps.index("rename") + 1 :]
    aside = f".manifest.json.{os.getpid()}.{threading.get_ident()}.writing"
    assert {"adapter_model.safetensors", "notes.txt", "more", "v000003", aside} <= set(before)
    assert after[0] == "v000003"


def test_the_samplers_of_a_fleet_prove_a_policy_at_once(policy: Path) -> None:
    """Each writes its report while another one reads all files."""

    def prove(sampler: int) -> None:
        for _ in range(50):
            write_arrival(policy, {"sampler": sampler})
            verify(policy)

    with ThreadPoolExecutor(4) as samplers:
        list(samplers.map(prove, range(4)))
    assert (read_arrival(policy) or {})["sampler"] in range(4)
    assert not list(policy.glob(".arrival*"))


def _remove(policy: Path) -> None:
    (policy / "more/notes.txt").unlink()


def _add(policy: Path) -> None:
    (policy / "more/extra").write_bytes(b"")


def _change(policy: Path) -> None:
    (policy / "adapter_model.safetensors").write_bytes(b"weighty")


def _link(policy: Path) -> None:
    (policy / "link").symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("spoil", "reason", "file"),
    [
        (_remove, "MISSING_FILE", "more/notes.txt"),
        (_add, "EXTRA_FILE", "more/extra"),
        (_change, "CHANGED_FILE", "adapter_model.safetensors"),
        (_link, "UNSAFE_NAME", "link"),
    ],
)
def test_a_changed_directory_is_refused_by_the_file_at_fault(policy: Path, spoil: Any, reason: str, file: str) -> None:
    spoil(policy)
    with pytest.raises(ManifestError, match=file) as error:
        verify(policy)
    assert (error.value.reason, error.value.file) == (reason, file)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"version": "3"},
        {"version": 0},
        {"version": True},
        {"parent_version": 3},
        {"kind": "dora"},
        {"base_digest": "xyz"},
        {"iteration": -1},
        {"files": {}},
        {"files": {"../up": "0" * 64}},
        {"files": {"/etc/passwd": "0" * 64}},
        {"files": {"a//b": "0" * 64}},
        {"files": {"a": "0"}},
        {"colour": "red"},
        {"base_digest": None},
    ],
)
def test_a_manifest_of_the_wrong_shape_is_refused(policy: Path, changes: dict[str, Any]) -> None:
    path = policy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ManifestError) as error:
        read_manifest(policy)
    assert error.value.reason == "BAD_MANIFEST"


@pytest.mark.parametrize("text", ["", "[]", "{}", "\xff"])
def test_a_manifest_that_is_none_is_refused(policy: Path, text: str) -> None:
    (policy / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ManifestError) as error:
        read_manifest(policy)
    assert error.value.reason == "BAD_MANIFEST"


def test_there_must_be_a_directory_with_files(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as error:
        read_manifest(tmp_path / "none")
    assert error.value.reason == "MISSING_DIRECTORY"
    with pytest.raises(ManifestError) as error:
        write_manifest(tmp_path, PolicyManifest(1, 0, "full", BASE))
    assert error.value.reason == "NO_FILES"


def test_the_digest_of_a_model_is_as_documented(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="contains no weights"):
        model_digest(tmp_path)
    for name, content in (("b.safetensors", b"22"), ("a.safetensors", b"1"), ("config.json", b"{}"), ("c.bin", b"3")):
        (tmp_path / name).write_bytes(content)
    parts = b"".join(
        struct.pack("<QQ", len(name), len(content)) + name + hashlib.sha256(content).digest()
        for name, content in ((b"a.safetensors", b"1"), (b"b.safetensors", b"22"))
    )
    assert model_digest(tmp_path) == hashlib.sha256(parts).hexdigest()


def test_names_of_directories() -> None:
    assert [policy_dirname(version) for version in (0, 7, 1234567)] == ["v000000", "v000007", "v1234567"]
    with pytest.raises(ValueError, match="negative"):
        policy_dirname(-1)
