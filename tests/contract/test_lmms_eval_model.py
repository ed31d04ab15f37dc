"""A sampler as a model of lmms-eval, tested with the installed package or with its recorded interface."""

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmms_eval_interface as recorded
import pytest
from PIL import Image
from running import Services
from sightline.errors import PreconditionFailed, Unsupported
from sightline.sampler import SamplerClient

IMAGE = {"type": "image"}


@pytest.fixture(params=["recorded", "installed"])
def lmms_eval(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The adapter, and lmms-eval's Instance and ModelManifest."""
    if request.param == "recorded":
        for name, module in recorded.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    else:
        pytest.importorskip("lmms_eval.api.model", reason="lmms-eval is not installed")
        pytest.importorskip("lmms_eval.models.registry_v2", reason="lmms-eval's models can't be imported")
    recorded.forget()
    yield SimpleNamespace(
        adapter=importlib.import_module("sightline_trainer.evaluation.lmms_eval_model"),
        Instance=importlib.import_module("lmms_eval.api.instance").Instance,
        Manifest=importlib.import_module("lmms_eval.models.registry_v2").ModelManifest,
        base=importlib.import_module("lmms_eval.api.model").lmms,
    )
    recorded.forget()


def ask(lmms_eval: Any, documents: list[Any], text: str, **settings: Any) -> list[Any]:
    """Send requests as lmms-eval's tasks do."""
    return [
        lmms_eval.Instance(
            request_type="generate_until",
            arguments=(text, dict(settings), lambda document: document["visuals"], number, "task", "test"),
            idx=0,
            metadata={"task": "task", "doc_id": number, "repeats": 1},
        )
        for number in range(len(documents))
    ]


def test_it_answers_through_a_real_sampler(lmms_eval: Any, services: Services, playground: Path) -> None:
    model = lmms_eval.adapter.SightlineSampler.create_from_arg_string(
        f"address={services.sampler},max_in_flight=4", {"batch_size": 1, "device": None}
    )
    assert isinstance(model, lmms_eval.base)
    paths = sorted((playground / "test/images").iterdir())[:3]
    documents: list[Any] = [{"visuals": [Image.open(path)]} for path in paths] + [{"visuals": [str(paths[0])]}]
    model.task_dict = {"task": {"test": documents}}
    answers = model.generate_until(
        ask(lmms_eval, documents, "<image>\ndescribe the picture .", max_new_tokens=40, temperature=0, until=["\n\n"])
    )
    assert all(answer.endswith(".") and len(answer.split()) > 3 for answer in answers)
    assert answers[0] == answers[3]
    cut = model.generate_until(ask(lmms_eval, documents, "describe the picture .", max_new_tokens=40, until=" a "))
    assert [answer.split(" a ")[0] for answer in answers] == cut
    pair = [{"visuals": [str(paths[0]), str(paths[1])]}]
    model.task_dict = {"task": {"test": pair}}
    both = model.generate_until(ask(lmms_eval, pair, "<image>\ndescribe the picture . <image>", max_new_tokens=20))
    with SamplerClient(services.sampler) as client:
        asked = [{"role": "user", "content": [IMAGE, {"type": "text", "text": "describe the picture . "}, IMAGE]}]
        assert both == [client.sample(paths[:2], asked, 1, temperature=0, max_tokens=20).candidates[0].text]
    model.task_dict = {"task": {"test": documents}}
    (short, *_) = model.generate_until(ask(lmms_eval, documents, "describe the picture .", max_new_tokens=2))
    assert len(short.split()) <= 2


def test_what_a_sampler_can_not_answer_is_refused_by_name(lmms_eval: Any, services: Services, playground: Path) -> None:
    model = lmms_eval.adapter.SightlineSampler(address=services.sampler)
    picture = Image.new("RGB", (8, 8))
    for visuals, complaint in (
        ([], "0 images"),
        (["clip.mp4"], "no videos"),
        ([b"bytes"], "not an image"),
    ):
        documents = [{"visuals": visuals}]
        model.task_dict = {"task": {"test": documents}}
        with pytest.raises(Unsupported, match=f"task task, document 0.*{complaint}"):
            model.generate_until(ask(lmms_eval, documents, "?"))
    documents = [{"visuals": [picture]}]
    model.task_dict = {"task": {"test": documents}}
    with pytest.raises(Unsupported, match="beam search"):
        model.generate_until(ask(lmms_eval, documents, "?", num_beams=3))
    with pytest.raises(Unsupported):
        model.loglikelihood([])
    with pytest.raises(Unsupported):
        model.generate_until_multi_round([])


def test_a_sampler_that_asks_for_tls_and_a_token_is_shown_both(lmms_eval: Any, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("none")
    for name, complaint in (
        ("ca_file", "contains no PEM"),
        ("key_file", "both or neither"),
        ("token_file", "is empty"),
    ):
        path = tmp_path / ("ca.pem" if name == "ca_file" else "empty")
        path.touch()
        with pytest.raises(PreconditionFailed, match=complaint):
            lmms_eval.adapter.SightlineSampler.create_from_arg_string(f"address=127.0.0.1:9,{name}={path}", {})


def test_the_registry_takes_the_manifest(lmms_eval: Any) -> None:
    manifest = lmms_eval.adapter.manifest()
    assert isinstance(manifest, lmms_eval.Manifest)
    assert manifest.model_id == "sightline"
    module, _, name = manifest.simple_class_path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    assert cls is lmms_eval.adapter.SightlineSampler
    assert cls.is_simple
    assert not inspect.isabstract(cls)
