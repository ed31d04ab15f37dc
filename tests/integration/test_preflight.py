"""`sightline run RECIPE --check`: broken set-ups, each reported in one sentence before the run starts."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import yaml
from running import WEIGHTS, Services, small_recipe
from scripted_server import listening
from sightline.errors import PreconditionFailed
from sightline.scorer.v1 import scorer_pb2 as pb
from sightline.scorer.v1 import scorer_pb2_grpc
from sightline_cli.main import app
from sightline_trainer.allowed import Allowed
from sightline_trainer.execute import execute
from sightline_trainer.model_processor import ModelProcessor
from sightline_trainer.preflight.known_models import KnownModels
from sightline_trainer.preflight.model import checkpoint
from sightline_trainer.recipe import Recipe
from sightline_trainer.run_queue import RunQueue
from sightline_trainer.runs import RunDirectory
from typer.testing import CliRunner

LLAVA = WEIGHTS / "llava"
Tree = dict[str, Any]


class _OtherRule(scorer_pb2_grpc.ScorerServiceServicer):
    """A scorer of a future release."""

    def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(
            models=[pb.ModelInfo(name="clip", is_default=True)], limits=pb.Limits(max_texts=99), picture_rule="7"
        )


def checkpoint_like_llava(directory: Path, **text: int) -> Path:
    """The playground's model by its small files; sizes of other language models can be estimated without weights."""
    directory.mkdir()
    for path in LLAVA.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, directory)
    config = json.loads((LLAVA / "config.json").read_text())
    config["text_config"] |= text
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def look(tree: Tree, tmp_path: Path, *flags: str) -> tuple[int, Tree]:
    """The exit code and the output of `--check --json`."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree))
    arguments = ["run", str(file), "--check", "--json", "--run", str(tmp_path / "run"), *flags]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    told = json.loads(result.stdout)
    assert list(told) == ["ok", "findings", "recipe", "memory", "seconds"]
    assert all(list(finding) == ["code", "message", "fix"] for finding in told["findings"])
    return result.exit_code, told


def _other_expression(tree: Tree, tmp_path: Path) -> None:
    tree["dpo"] = {"lora": {"target_modules": r".*text_model.*\.(q_proj|v_proj)"}}


def _missing_images(tree: Tree, tmp_path: Path) -> None:
    shutil.copytree(tree["data"]["train"], tmp_path / "train")
    for path in sorted((tmp_path / "train/images").iterdir())[:16]:
        path.unlink()
    tree["data"]["train"] = str(tmp_path / "train")


def _too_many_candidates(tree: Tree, tmp_path: Path) -> None:
    tree["sampling"]["candidates"] = 100


def _no_template(tree: Tree, tmp_path: Path) -> None:
    tree["model"] = str(checkpoint_like_llava(tmp_path / "llava"))
    (tmp_path / "llava/chat_template.jinja").unlink()


def _too_large(tree: Tree, tmp_path: Path) -> None:
    large = {"hidden_size": 65536, "intermediate_size": 262144, "num_attention_heads": 512, "num_key_value_heads": 512}
    tree["model"] = str(checkpoint_like_llava(tmp_path / "llava", **large, head_dim=128, num_hidden_layers=64))


def _leak(tree: Tree, tmp_path: Path) -> None:
    tree["data"]["test"] = tree["data"]["train"]


def _unknown_loss(tree: Tree, tmp_path: Path) -> None:
    tree["dpo"] = {"loss": {"sigmoyd": 1.0}}


BROKEN: dict[str, tuple[Callable[[Tree, Path], None], str, str, str]] = {
    "a LoRA expression that finds nothing": (
        _other_expression,
        "LORA_FINDS_NOTHING",
        " finds no linear layer in ",
        "",
    ),
    "missing images": (
        _missing_images,
        "IMAGES_UNREADABLE",
        "of 32 sampled images of data.train can't be read, such as that of align-000000:",
        "put them in place",
    ),
    "K over the sampler's limit": (
        _too_many_candidates,
        "LIMIT_TOO_LOW",
        "sampling.candidates: the recipe needs 100, but the sampler allows 64",
        "lower that, or raise its limits.max_candidates",
    ),
    "a model without a template": (
        _no_template,
        "NO_CHAT_TEMPLATE",
        "has no chat template",
        "put the model's chat_template",
    ),
    "too little memory": (_too_large, "UPDATE_NEEDS_MEMORY", "free, and the run needs", "dpo.dtype=bfloat16"),
    "a test set that leaks": (_leak, "TEST_LEAKS", "train and test share ", "take these pictures out"),
    "an unknown loss": (_unknown_loss, "RECIPE_INVALID", "dpo.loss names sigmoyd", "known are sigmoid, "),
}


@pytest.mark.field
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_set_up_is_told_in_its_sentence(
    name: str, services: Services, playground: Path, tmp_path: Path
) -> None:
    break_it, code, message, fix = BROKEN[name]
    tree = small_recipe(services, playground)
    break_it(tree, tmp_path)
    exit_code, told = look(tree, tmp_path)
    assert (exit_code, told["ok"]) == (2, False)
    finding = told["findings"][0]
    assert finding["code"] == code
    assert message in finding["message"]
    assert finding["fix"].startswith(fix) or fix in finding["fix"]
    assert "\n" not in finding["message"]
    assert {each["code"] for each in told["findings"]} <= {code, "DISK_TOO_SMALL"}


@pytest.mark.field
def test_a_scorer_with_another_picture_rule_is_told_in_its_sentence(
    services: Services, playground: Path, tmp_path: Path
) -> None:
    name = "sightline_scorer.v1.ScorerService"
    with listening(scorer_pb2_grpc.add_ScorerServiceServicer_to_server, _OtherRule(), name) as address:
        exit_code, told = look(small_recipe(services, playground), tmp_path, "--scorer", address)
    assert (exit_code, [finding["code"] for finding in told["findings"]]) == (2, ["PICTURE_RULE_DIFFERS"])
    assert told["findings"][0]["message"].startswith(f"the scorer at {address} reads pictures by rule 7, and this")
    assert told["findings"][0]["fix"] == "run the same release of Sightline on both"


@pytest.mark.slow
def test_a_service_that_does_not_start_is_told_in_its_sentence(
    services: Services, playground: Path, tmp_path: Path
) -> None:
    tree = small_recipe(services, playground, model=str(families.make(tmp_path / "mllama", "mllama")))
    del tree["sampling"]["address"]
    exit_code, told = look(tree, tmp_path)
    assert (exit_code, [finding["code"] for finding in told["findings"]]) == (2, ["SERVICE_NOT_STARTED"])
    said = told["findings"][0]["message"]
    assert "this engine cannot decode this model: its layer 1 keeps 68 keys" in said
    assert "log" not in said  # it was removed with the check's scratch directory


def test_several_faults_are_told_together(services: Services, playground: Path, tmp_path: Path) -> None:
    tree = small_recipe(services, playground)
    for break_it in (_other_expression, _missing_images, _too_many_candidates, _leak):
        break_it(tree, tmp_path)
    told = look({**tree, "dpo": {**tree["dpo"], "launch": ["accelerato"]}}, tmp_path)[1]
    codes = [finding["code"] for finding in told["findings"]]
    assert codes[:2] == ["LAUNCHER_UNUSABLE", "LORA_FINDS_NOTHING"]
    assert {"IMAGES_UNREADABLE", "LIMIT_TOO_LOW", "TEST_LEAKS"} <= set(codes)


def test_a_good_recipe_is_tried_and_leaves_nothing_behind(
    services: Services, playground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    exit_code, told = look(small_recipe(services, playground), tmp_path)
    assert (exit_code, told["ok"], told["findings"]) == (0, True, [])
    assert told["recipe"]["name"] == "small"
    assert told["memory"]["model"]["family"] == "llava"
    assert told["memory"]["model"]["modules"] == 28
    assert told["memory"]["processes"]["trainer"]["total"] > told["memory"]["processes"]["trainer"]["weights"] > 5e6
    assert told["seconds"]["trial"]["sampled_sides"] == 2
    assert told["seconds"]["trial"]["sampled_gap_max"] < 1e-4
    assert 0 < told["seconds"]["iteration"] < told["seconds"]["run"]
    assert "one step" in told["seconds"]["rests_on"]
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not (tmp_path / "run").exists()


@pytest.mark.field
def test_checkpoints_that_are_not_of_transformers_say_so_in_one_sentence(tmp_path: Path) -> None:
    def told(config: Tree) -> list[tuple[str, str]]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return [(finding.code, finding.message) for finding in checkpoint(ModelProcessor(str(tmp_path)))]

    ((code, message),) = told({"model_type": "mobilevlm", "architectures": ["MobileLlamaForCausalLM"]})
    assert code == "MODEL_NOT_TRANSFORMERS"
    assert "is not a checkpoint of transformers' own (model_type 'mobilevlm'" in message
    # LLaVA's own release calls itself as transformers' conversion does.
    ((code, _),) = told({"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]})
    assert code == "MODEL_NOT_TRANSFORMERS"
    ((code, _),) = told({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    assert code == "MODEL_TAKES_NO_IMAGES"
    ((code, message),) = told(json.loads((LLAVA / "config.json").read_text()))
    assert (code, "\n" in message) == ("PROCESSOR_UNUSABLE", False)
    assert [finding.code for finding in checkpoint(ModelProcessor(str(tmp_path / "none")))] == ["MODEL_NOT_FOUND"]
    assert list(checkpoint(ModelProcessor(str(LLAVA)))) == []


def test_a_model_is_looked_at_once_until_its_files_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[ModelProcessor] = []
    load = ModelProcessor.load

    def counted(made: ModelProcessor) -> Any:
        looked.append(made)
        return load(made)

    monkeypatch.setattr(ModelProcessor, "load", counted)
    model = shutil.copytree(LLAVA, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    known, made = KnownModels(), ModelProcessor(str(model))
    for _ in range(3):
        assert list(known.checkpoint(made)) == []
    assert looked == [made]
    other = ModelProcessor(str(model), chat_template="{{ messages[0].role }}")
    assert [finding.code for finding in known.checkpoint(other)] == ["CHAT_TEMPLATE_UNUSABLE"]
    (model / "chat_template.jinja").unlink()
    for _ in range(2):
        assert [finding.code for finding in known.checkpoint(made)] == ["NO_CHAT_TEMPLATE"]
    assert looked.count(made) == 3


@pytest.mark.field
def test_a_run_is_not_begun_with_what_would_end_it(services: Services, playground: Path, tmp_path: Path) -> None:
    for break_it, code in ((_other_expression, "LORA_FINDS_NOTHING"), (_no_template, "NO_CHAT_TEMPLATE")):
        tree = small_recipe(services, playground)
        break_it(tree, tmp_path)
        run = RunDirectory(tmp_path / code)
        with pytest.raises(PreconditionFailed, match=r"finds no linear layer|put the model's chat_template") as caught:
            execute(Recipe.model_validate(tree), run, lambda event: None)
        assert caught.value.reason == code
        assert not (run.root / "iterations").exists()


@pytest.mark.field
def test_a_service_refuses_a_run_of_a_model_that_cant_be_used(
    services: Services, playground: Path, tmp_path: Path
) -> None:
    tree = small_recipe(services, playground)
    _no_template(tree, tmp_path)
    allowed = Allowed(addresses=[services.sampler, services.scorer], data_roots=[playground])
    queue = RunQueue(tmp_path / "runs", allowed=allowed)
    with pytest.raises(PreconditionFailed, match="has no chat template") as caught:
        queue.submit("one", None, yaml.safe_dump(tree), [], "one")
    assert caught.value.reason == "NO_CHAT_TEMPLATE"
    assert not (tmp_path / "runs/one").exists()


@pytest.mark.field
@pytest.mark.slow
def test_a_sampler_with_another_chat_template_than_the_recipes_is_refused(
    services: Services, playground: Path, tmp_path: Path
) -> None:
    own = (LLAVA / "chat_template.jinja").read_text()
    (tmp_path / "other.jinja").write_text(f"{{{{ 'Look! ' }}}}{own}")
    exit_code, told = look(small_recipe(services, playground, chat_template="other.jinja"), tmp_path)
    assert (exit_code, [finding["code"] for finding in told["findings"]]) == (2, ["CHAT_TEMPLATE_DIFFERS"])
    assert "'Look! " in told["findings"][0]["message"]
    exit_code, told = look(small_recipe(services, playground, chat_template=own), tmp_path)
    assert (exit_code, told["findings"]) == (0, [])
