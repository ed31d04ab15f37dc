"""Models that the sampler's engine cannot run: it says why at start, in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import families
import pytest
from sampler_engine import refusal
from sightline.errors import PreconditionFailed

REFUSED = {
    "mllama": ("ARCHITECTURE_UNSUPPORTED", "cross-attention"),
    "blip_2": ("ARCHITECTURE_UNSUPPORTED", "wants pixel_values with every token"),
    "instructblip": ("ARCHITECTURE_UNSUPPORTED", "wants pixel_values and qformer_input_ids with every token"),
}


def short(directory: Path, **options: str) -> PreconditionFailed:
    refused = refusal(directory, **options)
    assert len(str(refused)) < 400 + 2 * len(str(directory))
    return refused


@pytest.mark.parametrize("name", REFUSED)
def test_families_that_cannot_run_say_why(name: str, tmp_path: Path) -> None:
    directory = families.make(tmp_path / "model", name)
    options: list[dict[str, str]] = [{}]  # a model that cannot run is refused before its template is checked
    if template := families.OTHERS[name].template:
        (tmp_path / "template.jinja").write_text(template)
        options.append({"chat_template": str(tmp_path / "template.jinja")})
    for each in options:
        error = short(directory, **each)
        reason, why = REFUSED[name]
        assert error.reason == reason
        assert why in str(error)


def test_paligemma_without_a_template_says_what_to_set(tmp_path: Path) -> None:
    error = short(families.make(tmp_path, "paligemma"))
    assert error.reason == "NO_CHAT_TEMPLATE"
    assert "engine.chat_template" in str(error)


def test_a_checkpoint_that_is_not_transformers_own_says_so(tmp_path: Path) -> None:
    """As MobileVLM V2 is published: a model type unknown to transformers, with its own code."""
    config = {"model_type": "mobilevlm", "architectures": ["MobileLlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    error = short(tmp_path)
    assert error.reason == "MODEL_NOT_TRANSFORMERS"
    assert "knows no model type 'mobilevlm'" in str(error)
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "modeling.Model"}}))
    assert "code inside a checkpoint is never run" in str(short(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "not an image-text-to-text model" in str(short(tmp_path))


def test_a_checkpoint_without_its_processor_says_so(tmp_path: Path) -> None:
    families.make(tmp_path, "llava")
    for file in (*tmp_path.glob("*processor*"), *tmp_path.glob("token*")):
        file.unlink()
    error = short(tmp_path)
    assert error.reason == "PROCESSOR_UNUSABLE"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        pytest.param(
            "{% for m in messages %}{{ m.content }}",
            "the chat template of LlavaProcessor cannot be rendered",
            id="broken",
        ),
        pytest.param("{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}", "chat template", id="blind"),
    ],
)
def test_a_template_that_cannot_be_rendered_or_shows_no_image_is_refused(
    template: str, said: str, tmp_path: Path
) -> None:
    families.make(tmp_path / "model", "llava")
    (tmp_path / "template.jinja").write_text(template)
    error = short(tmp_path / "model", chat_template=str(tmp_path / "template.jinja"))
    assert error.reason == "PROCESSOR_UNUSABLE"
    assert said in str(error)
