"""The model repository, the search for tritonserver, and the translation of Triton's errors."""

import asyncio
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import scorer_models
from scorer_models import SENTENCES, Reference
from sightline.errors import (
    DeadlineExceeded,
    InternalError,
    Overloaded,
    PreconditionFailed,
    SightlineError,
    Unavailable,
)
from sightline_scorer.settings import ModelSettings, TritonSettings
from sightline_scorer.triton import backend as backend_module
from sightline_scorer.triton import repository
from sightline_scorer.triton.backend import TritonBackend, _typed
from sightline_scorer.triton.card import ModelCard
from sightline_scorer.triton.installation import Installation, TritonNotInstalled, find
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scorer_models.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def card(tiny: Path) -> ModelCard:
    return repository.describe("tiny", ModelSettings(source=str(tiny)))


def parsed(path: Path) -> model_config_pb2.ModelConfig:
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def test_a_card_states_the_models_facts(tiny: Path, card: ModelCard) -> None:
    reference = Reference(tiny)
    assert card.logit_scale == pytest.approx(reference.model.logit_scale.exp().item())
    assert (card.image_height, card.image_width, card.context_length, card.embedding_size) == (64, 64, 77, 64)
    assert card.vocabulary_size == 49408
    assert card.trim_padding
    assert not card.sigmoid
    assert card.preprocess["mean"] == [0.48, 0.45, 0.4]
    weights = tiny / "open_clip_model.safetensors"
    assert card.weights_digest == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert ModelCard.from_json(card.to_json(tower="image")) == card


def test_a_bidirectional_text_tower_keeps_its_padding(tmp_path: Path) -> None:
    card = repository.describe("s", ModelSettings(source=f"local-dir:{scorer_models.siglip(tmp_path)}"))
    assert not card.trim_padding
    assert card.logit_bias == -10
    assert card.sigmoid


def test_the_preprocessing_digest_follows_the_preprocessing(card: ModelCard) -> None:
    other = replace(card, preprocess={**card.preprocess, "interpolation": "bilinear"})
    assert other.preprocessing_digest != card.preprocessing_digest
    assert replace(card, name="other").preprocessing_digest == card.preprocessing_digest


def test_a_repository_of_two_models(card: ModelCard, tmp_path: Path) -> None:
    other = replace(card, name="other")
    repository.build([card, other], "tiny", tmp_path, TritonSettings(image_batch=8), copy=False)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"clip_image", "clip_text", "clip_image__other", "clip_text__other"}
    image, text = parsed(tmp_path / "clip_image/config.pbtxt"), parsed(tmp_path / "clip_text/config.pbtxt")
    assert (image.name, image.backend, image.max_batch_size) == ("clip_image", "python", 8)
    assert list(image.input[0].dims) == [3, 64, 64]
    assert list(text.input[0].dims) == [-1]
    assert list(image.output[0].dims) == list(text.output[0].dims) == [64]
    assert image.dynamic_batching.max_queue_delay_microseconds == 0
    assert text.input[0].allow_ragged_batch
    assert (tmp_path / "clip_text/1/towers.py").is_file()
    assert not image.dynamic_batching.HasField("default_queue_policy"), "it would make requests wait half a second"
    assert [warm.batch_size for warm in image.model_warmup] == [1, 8]
    facts = json.loads(text.parameters["sightline"].string_value)
    assert (facts["tower"], facts["image_model"]) == ("text", "clip_image")
    other_image = json.loads(parsed(tmp_path / "clip_image__other/config.pbtxt").parameters["sightline"].string_value)
    assert other_image["text_model"] == "clip_text__other"
    assert ModelCard.from_json(json.dumps(facts)) == card


def test_a_repository_to_mount_elsewhere_holds_the_weights(card: ModelCard, tmp_path: Path) -> None:
    repository.build([card], "tiny", tmp_path, TritonSettings(), copy=True)
    for tower in ("image", "text"):
        version = tmp_path / f"clip_{tower}/1"
        facts = json.loads(parsed(version.parent / "config.pbtxt").parameters["sightline"].string_value)
        assert facts["weights_path"] == "weights/open_clip_model.safetensors"
        assert (version / facts["weights_path"]).is_file()
        assert (version / "weights/open_clip_config.json").is_file()
        assert not {"text_model", "image_model"} & set(facts), (
            "they may be served by other processes, of other machines"
        )


def test_the_command_line_builds_a_repository(tiny: Path, tmp_path: Path) -> None:
    assert repository.main(["--model", f"base={tiny}", "--device", "cpu", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/clip_text/1/model.py").is_file()


def test_the_command_line_says_in_a_line_why_it_builds_no_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        repository.main(["--model", "base=ViT-B-32@no_such_weights", str(tmp_path / "out")])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: model 'ViT-B-32' with pretrained='no_such_weights' has no weights")


def test_a_cluster_builds_what_the_services_settings_say(tiny: Path, tmp_path: Path) -> None:
    """Precision, batch and the default model come from the file that the service reads."""
    config = tmp_path / "settings.yaml"
    config.write_text(
        f"models: {{a: {{source: '{tiny}'}}, b: {{source: '{tiny}', precision: fp16}}}}\ndefault_model: b\n"
        "triton: {mode: remote, address: 'triton:8001', image_batch: 48, instances: 2}\n"
    )
    assert repository.main(["--config", str(config), "--copy-weights", str(tmp_path / "out")]) == 0
    written = parsed(tmp_path / "out/clip_image/config.pbtxt")
    assert json.loads(written.parameters["sightline"].string_value)["precision"] == "fp16"
    assert (written.max_batch_size, written.instance_group[0].count) == (48, 2)
    other = parsed(tmp_path / "out/clip_image__a/config.pbtxt")
    assert json.loads(other.parameters["sightline"].string_value)["precision"] == "fp32"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (ModelSettings(source="ViT-B-32"), "set `pretrained` to a weights file or one of .*laion2b_s34b_b79k"),
        (ModelSettings(source="ViT-B-32", pretrained="nonsense"), "has no weights"),
        (ModelSettings(source="ViT-Z-99"), "open_clip.list_models"),
        (ModelSettings(source="local-dir:/nowhere"), "no open_clip_config.json"),
    ],
)
def test_a_model_without_weights_is_refused(settings: ModelSettings, says: str) -> None:
    """open_clip would continue with random weights, and its scores would look plausible."""
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        repository.describe("m", settings)


def test_a_directory_without_weights_is_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "open_clip_config.json", tmp_path)
    with pytest.raises(ValueError, match="contains no weights"):
        repository.describe("m", ModelSettings(source=str(tmp_path)))


@pytest.mark.field
def test_a_model_that_fails_its_trial_forward_is_named(tmp_path: Path) -> None:
    """Triton found it, and the answer was its log of kilobytes."""
    text = {**scorer_models.TINY["text_cfg"], "vocab_size": 400}  # the tokenizer's ids go further
    broken = scorer_models.make_model(
        tmp_path, {**scorer_models.TINY, "text_cfg": text}, {"size": 64, "interpolation": "bicubic"}
    )
    with pytest.raises(PreconditionFailed, match=r"the model m fails its trial forward: IndexError") as caught:
        repository.describe("m", ModelSettings(source=str(broken)))
    assert (caught.value.reason, "\n" in str(caught.value)) == ("MODEL_FAILS_FORWARD", False)


def test_an_open_clip_name_with_a_weights_file(tiny: Path, tmp_path: Path) -> None:
    """Any architecture of open_clip goes with any weights file that fits it."""
    import open_clip

    open_clip.add_model_config(_named(tiny, tmp_path))
    settings = ModelSettings(source="tiny-test-arch", pretrained=str(tiny / "open_clip_model.safetensors"))
    card = repository.describe("m", settings)
    assert (card.architecture, card.local_dir, card.embedding_size) == ("tiny-test-arch", False, 64)
    repository.build([card], "m", tmp_path / "out", TritonSettings(), copy=True)
    copied, direct = Reference(tmp_path / "out/clip_text/1/weights"), Reference(tiny)
    direct.model, _, direct.preprocess = open_clip.create_model_and_transforms(settings.source, settings.pretrained)
    direct.model.eval()
    picture = scorer_models.picture()
    assert copied.cosines(picture, SENTENCES) == pytest.approx(direct.cosines(picture, SENTENCES), abs=1e-6)


def _named(tiny: Path, directory: Path) -> Path:
    path = directory / "tiny-test-arch.json"
    path.write_text(json.dumps(json.loads((tiny / "open_clip_config.json").read_text())["model_cfg"]))
    return path


def test_tritonserver_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TritonNotInstalled, match="`sightline triton install`"):
        find(tmp_path)
    monkeypatch.setenv("SIGHTLINE_TRITON_HOME", str(tmp_path / "there"))
    with pytest.raises(TritonNotInstalled, match="there"):
        find()


def test_tritonserver_without_a_stub_for_this_python(tmp_path: Path) -> None:
    binary = tmp_path / "pytriton/tritonserver/bin/tritonserver"
    binary.parent.mkdir(parents=True)
    binary.touch()
    (tmp_path / "pytriton/tritonserver/python_backend_stubs/3.8").mkdir(parents=True)
    with pytest.raises(TritonNotInstalled, match=r"one of 3\.8"):
        find(tmp_path)


def test_a_stub_that_does_not_run_here(tmp_path: Path) -> None:
    found = Installation(tmp_path)
    for path, text in ((found.binary, ""), (found.stub, "#!/bin/sh\necho libpython3.so: not found >&2; exit 127\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)
    with pytest.raises(TritonNotInstalled, match=r"libpython3\.so: not found"):
        find(tmp_path)


def test_tritonserver_is_found_above_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIGHTLINE_TRITON_HOME", raising=False)
    below = tmp_path / "a/b"
    below.mkdir(parents=True)
    home = find().home
    (tmp_path / ".triton").symlink_to(home)
    monkeypatch.chdir(below)
    assert find().home == home
    backends = tmp_path / "backends"
    find().make_backends(backends)
    assert {path.name for path in (backends / "python").iterdir()} == {
        "libtriton_python.so",
        "triton_python_backend_utils.py",
        "triton_python_backend_stub",
    }


def test_shared_memory_is_opened_by_the_next_one_where_the_first_caller_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        server: Any = SimpleNamespace(address=lambda: "127.0.0.1:1")
        backend = TritonBackend(server, TritonSettings())
        client = backend._connected()
        opened, region = asyncio.Event(), object()

        async def open_region(*_: Any) -> Any:
            if not opened.is_set():
                opened.set()
                await asyncio.Event().wait()
            return region

        monkeypatch.setattr(backend_module, "open_region", open_region)
        first = asyncio.create_task(backend._region(client, "clip_image", 4))
        await opened.wait()
        assert await backend._region(client, "clip_image", 4) is None, "it goes by gRPC meanwhile"
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert await backend._region(client, "clip_image", 4) is region
        await backend.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "message", "expected", "retry_after"),
    [
        ("StatusCode.UNAVAILABLE", "[request id: 1] Exceeds maximum queue size", Overloaded, 1),
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses", Unavailable, 5),
        ("StatusCode.UNAVAILABLE", "Request timeout expired", DeadlineExceeded, None),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded, None),
        ("StatusCode.INTERNAL", "Stub process 'clip_text_0_0' is not healthy.", Unavailable, 5),
        ("StatusCode.INTERNAL", "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", Overloaded, 5),
        ("StatusCode.INTERNAL", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", Overloaded, 5),
        ("StatusCode.INTERNAL", "Failed to process the request(s): RuntimeError", InternalError, None),
    ],
)
def test_tritons_errors(status: str, message: str, expected: type[SightlineError], retry_after: float | None) -> None:
    error = _typed(InferenceServerException(message, status=status), "clip_text", 3.0)
    assert type(error) is expected
    assert error.retry_after == retry_after
    assert error.code is not grpc.StatusCode.UNKNOWN
