"""What binds a run to its recipe, where its paths lead, and the errors for its damaged files."""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sightline.errors import DataCorrupted, PreconditionFailed
from sightline_cli.main import app
from sightline_trainer.binding import bound_by
from sightline_trainer.places import canonical, located, portable
from sightline_trainer.recipe import Recipe, load_recipe
from sightline_trainer.report.history import History
from sightline_trainer.rollout import Rollout
from sightline_trainer.runs import RunDirectory
from typer.testing import CliRunner

pytestmark = pytest.mark.field


def recipe(**values: Any) -> Recipe:
    return Recipe.model_validate({"name": "test", "model": "m", "data": {"train": "a", "test": "b"}, **values})


def finished(run: RunDirectory, iterations: int) -> None:
    """Empty files of a run with this many finished iterations."""
    run.set_state("running")
    for number in range(iterations + 1):
        names = ["evaluation.json", "captions.parquet"]
        if number:
            names += ["candidates/00000.parquet", "scores/00000.parquet", "rollout.json"]
            names += ["pairs.parquet", "pairs.json", "update.json", "publish.json"]
        for name in names:
            path = run.iteration(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    run.metrics.write_text("[]")


def there(run: RunDirectory) -> set[str]:
    below = run.root / "iterations"
    return {str(path.relative_to(below)) for path in below.rglob("*") if path.is_file()}


def test_what_defines_no_result_binds_nothing(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(recipe())
    finished(run, 3)
    before = there(run)
    places = {"sampling": {"address": "a:1", "max_in_flight": 4}, "reward": {"address": "b:2"}}
    assert run.open(recipe(iterations=5, threads=1, description="more", **places)) == ""
    assert there(run) == before
    assert run.recipe() == recipe(iterations=5, threads=1, description="more", **places)
    with pytest.raises(PreconditionFailed, match="has done 3 iterations, and the recipe wants 2"):
        run.open(recipe(iterations=2))


def test_another_spelling_of_a_path_is_the_same_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "train", "test", "clip"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "train")
    run = RunDirectory(Path("run"))
    one = {"model": "model", "data": {"train": "train", "test": "test"}, "reward": {"source": "local-dir:clip"}}
    other = {
        "model": str(tmp_path / "model"),
        "data": {"train": "./link", "test": "../" + tmp_path.name + "/test"},
        "reward": {"source": f"local-dir:{tmp_path}/clip"},
    }
    run.open(recipe(**one))
    finished(run, 1)
    assert run.open(recipe(**other)) == ""
    assert len(there(run)) == 11


def test_a_changed_update_keeps_candidates_and_scores_and_redoes_updates(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(recipe())
    finished(run, 2)
    found = run.open(recipe(dpo={"learning_rate": 1e-5}))
    assert "dpo.learning_rate: 0.0002 -> 1e-05" in found
    # The second iteration's candidates were written by the first one's policy, which is replaced.
    assert there(run) == {
        "0000/evaluation.json",
        "0000/captions.parquet",
        "0001/candidates/00000.parquet",
        "0001/scores/00000.parquet",
        "0001/rollout.json",
        "0001/pairs.parquet",
        "0001/pairs.json",
    }
    kept = run.root / "replaced/0001/iterations"
    assert (kept / "0001/update.json").read_text() == "update.json"
    assert (kept / "0002/scores/00000.parquet").exists()
    assert run.open(recipe(dpo={"learning_rate": 1e-5})) == ""


def test_changed_pairing_and_evaluation_redo_what_they_define(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(recipe())
    finished(run, 1)
    assert "evaluation.prompts" in run.open(recipe(evaluation={"prompts": 9}))
    assert {name for name in there(run) if "evaluation" in name or "captions" in name} == set()
    assert "0001/publish.json" in there(run)
    finished(run, 1)
    found = run.open(recipe(evaluation={"prompts": 9}, filters={"gap": {"min": 3}}))
    assert "filters.gap.min: 2.0 -> 3.0" in found
    assert "filters.finished" in found
    assert {name for name in there(run) if name.startswith("0001")} == {
        "0001/candidates/00000.parquet",
        "0001/scores/00000.parquet",
        "0001/rollout.json",
    }


def test_what_is_sampled_ahead_by_the_base_model_stands(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(recipe(sampling={"staleness": 1}))
    finished(run, 3)
    run.open(recipe(sampling={"staleness": 1}, dpo={"beta": 0.3}))
    assert "0002/scores/00000.parquet" in there(run)
    assert not run.iteration(3).exists()


def test_what_defines_candidates_is_refused_and_named(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(recipe())
    finished(run, 1)
    with pytest.raises(PreconditionFailed, match=r"another recipe: seed: 0 -> 1; sampling\.temperature: 1\.0 -> 0\.5"):
        run.open(recipe(seed=1, sampling={"temperature": 0.5}))


def test_every_key_of_a_recipe_is_bound_to_a_stage() -> None:
    assert bound_by("candidates.buffer.share") == "pair"
    assert bound_by("candidates.policy.per_image") == "sample"
    assert bound_by("candidates.injected.url") == "free"
    assert bound_by("publication.extrapolate") == "update"
    assert bound_by("data.test") == "evaluate"
    assert bound_by("a_key_of_tomorrow") == "sample"


def test_a_run_is_moved_and_gone_on_with_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "weights").mkdir(parents=True)
    monkeypatch.chdir(home)
    for name in ("train", "test"):
        (home / "runs/one/data" / name).mkdir(parents=True)
    (home / "runs/one/data/talk.json").write_text("[]")
    (home / "conf").mkdir()
    (home / "conf/fsdp.yaml").write_text("")
    values = {
        "dpo": {"launch": ["accelerate", "launch", "--config_file", "conf/fsdp.yaml"]},
        "model": "weights",
        "data": {"train": "llava:runs/one/data/talk.json?images=runs/one/data/train", "test": "runs/one/data/test"},
    }
    run = RunDirectory(Path("runs/one"))
    run.open(recipe(**values))
    written = yaml.safe_load((run.root / "recipe.yaml").read_text())
    assert written["data"] == {
        "train": "llava:run:data/talk.json?images=run:data/train",
        "test": "run:data/test",
        "prompts_per_iteration": 512,
        "pairs": None,
        "mix": {"offline": 1.0, "start": 0},
    }
    assert written["model"] == str(home / "weights")
    assert written["dpo"]["launch"][1:] == ["launch", "--config_file", str(home / "conf/fsdp.yaml")]
    moved = tmp_path / "elsewhere/two"
    moved.parent.mkdir()
    run.root.rename(moved)
    monkeypatch.chdir("/")
    known = RunDirectory(moved).recipe()
    assert known is not None
    assert known.data.train == f"llava:{moved}/data/talk.json?images={moved}/data/train"
    assert Path(known.data.test).is_dir()
    assert History.read(moved).recipe["data"]["test"] == known.data.test
    again = load_recipe(moved / "recipe.yaml")  # as `sightline run RUN/recipe.yaml --run RUN` reads it
    assert again == known
    assert RunDirectory(moved).open(again) == ""


def test_a_run_and_its_data_may_have_a_question_mark_in_their_names(tmp_path: Path) -> None:
    root = tmp_path / "why?"
    (root / "data").mkdir(parents=True)
    (root / "data/a?.jsonl").touch()
    tree = {"data": {"train": f"{root}/data/a?.jsonl?prompt=text", "test": f"{root}/data?prompt=text"}}
    written = portable(tree, root)
    assert written["data"] == {"train": "run:data/a?.jsonl?prompt=text", "test": "run:data?prompt=text"}
    moved = root.rename(tmp_path / "why not?")
    expected = {"train": f"{moved}/data/a?.jsonl?prompt=text", "test": f"{moved}/data?prompt=text"}
    assert located(written, moved)["data"] == expected
    assert canonical(written, moved) == canonical({"data": expected}, moved)


@pytest.mark.parametrize("scheme", ["", "llava:", "datasets:"])
def test_directories_of_images_move_with_their_run(tmp_path: Path, scheme: str) -> None:
    root = tmp_path / "run"
    (root / "data/images").mkdir(parents=True)
    tree = {"data": {"train": f"{scheme}{root}/data?images={root}/data/images&split=train"}}
    written = portable(tree, root)
    assert written["data"]["train"] == f"{scheme}run:data?images=run:data/images&split=train"
    elsewhere = tmp_path / "else where"
    query = parse_qs(located(written, elsewhere)["data"]["train"].partition("?")[2])
    assert query == {"images": [f"{elsewhere}/data/images"], "split": ["train"]}


@pytest.mark.parametrize("name", ["run.json", "iterations/0000/evaluation.json", "iterations/0001/pairs.json"])
@pytest.mark.parametrize("text", ["", '{"state": "runn'])
def test_an_empty_or_torn_json_is_named(tmp_path: Path, name: str, text: str) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(recipe())
    (run.root / name).parent.mkdir(parents=True, exist_ok=True)
    (run.root / name).write_text(text)
    with pytest.raises(DataCorrupted, match=name) as caught:
        History.read(run.root)
    assert caught.value.reason == "RUN_FILE_DAMAGED"
    found = CliRunner().invoke(app, ["report", str(run.root)])
    assert found.exit_code == 1
    assert "is damaged" in found.output
    assert "Traceback" not in found.output


@pytest.mark.parametrize("text", ["", "a: [", "name: 3\n", "\x00"])
def test_a_damaged_recipe_is_named(tmp_path: Path, text: str) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(recipe())
    (run.root / "recipe.yaml").write_text(text)
    with pytest.raises(DataCorrupted, match=r"recipe\.yaml"):
        run.recipe()


@pytest.mark.parametrize("kept", [0, 40])
def test_a_truncated_parquet_is_named(tmp_path: Path, kept: int) -> None:
    rollout = Rollout(tmp_path)
    rollout._write(0, [])
    path = tmp_path / "scores/00000.parquet"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataCorrupted, match=r"00000\.parquet"):
        list(rollout.read())


def test_export_names_a_truncated_parquet(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open(recipe())
    path = run.iteration(1) / "pairs.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"prompt_id": ["a"]}), path)
    path.write_bytes(path.read_bytes()[:-20])
    found = CliRunner().invoke(app, ["export", str(run.root), "--to", str(tmp_path / "out")])
    assert (found.exit_code, "is damaged" in found.output) == (1, True)
