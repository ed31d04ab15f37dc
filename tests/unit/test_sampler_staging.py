"""A policy whose fetch or merge takes long, and that is requested again after its first caller left."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from sightline.sampler.manifest import MANIFEST
from sightline_chassis.remote_directory import RemoteDirectory
from sightline_sampler.engines.remote import merge as merging
from sightline_sampler.policies import download
from sightline_sampler.policies.staging import policy_directory
from sightline_sampler.settings import PolicySettings


class Gate:
    """Holds the first caller until the test releases it."""

    def __init__(self) -> None:
        self.reached, self.go, self._first = threading.Event(), threading.Event(), True

    def __call__(self) -> None:
        if self._first:
            self._first = False
            self.reached.set()
            self.go.wait(10)


def test_a_download_that_is_asked_for_again_is_not_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, content, gate = fsspec.filesystem("memory"), b"tensors", Gate()
    files.pipe({"/policies/v1/a": content, f"/policies/v1/{MANIFEST}": b"{}"})
    monkeypatch.setattr(download, "read_manifest", lambda _: SimpleNamespace(files=["a"]))
    fetch = RemoteDirectory.fetch

    def slow(remote: RemoteDirectory, name: str, to: Path, **bounds: Any) -> int:
        if name == "a":
            gate()
        return fetch(remote, name, to, **bounds)

    monkeypatch.setattr(RemoteDirectory, "fetch", slow)
    settings = PolicySettings(schemes=("memory",), download_dir=tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(policy_directory, "memory://policies/v1", 1, settings)
        gate.reached.wait(10)
        again = pool.submit(policy_directory, "memory://policies/v1", 1, settings)
        threading.Timer(0.2, gate.go.set).start()
        assert first.result() == again.result()
    assert (first.result() / "a").read_bytes() == content


def test_a_merge_that_is_asked_for_again_is_not_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, to, gate = tmp_path / "base", tmp_path / "merged", Gate()
    base.mkdir()
    (base / "a.safetensors").write_bytes(b"tensors")

    def rewrite(path: Path, aside: Path, _: Any) -> None:
        gate()
        aside.write_bytes(path.read_bytes())

    monkeypatch.setattr(merging, "_changes", lambda _: {})
    monkeypatch.setattr(merging, "_rewrite", rewrite)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(merging.merge, tmp_path, base, to)
        gate.reached.wait(10)
        again = pool.submit(merging.merge, tmp_path, base, to)
        threading.Timer(0.2, gate.go.set).start()
        first.result()
        again.result()
    assert [path.name for path in to.iterdir()] == ["a.safetensors"]
