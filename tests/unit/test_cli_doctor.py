"""`sightline doctor` on machines that this one is not."""

import pytest
import torch
from sightline_cli import doctor


@pytest.mark.parametrize(("compiler", "verdict"), [(None, "warn"), ("/usr/bin/gcc", "ok")])
def test_a_gpu_without_a_compiler_is_named(compiler: str | None, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container with Triton and without gcc decodes several times slower."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("shutil.which", lambda name: compiler if name == "gcc" else None)
    monkeypatch.delenv("CC", raising=False)
    looks = {look.what: look for look in doctor._torch()}
    assert "NVIDIA H100, 70 of 80 GiB free" in looks["torch"].found
    kernels = looks["kernels for the GPU"]
    assert kernels.verdict == verdict
    assert ("install gcc" in kernels.found) == (verdict == "warn")
