"""Each recipe of the repository, shortened, with the real services."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from documented import Documented, documented
from running import ROOT, WEIGHTS, Services
from sightline.sampler.turns import user_turn
from sightline_cli.processes import Processes
from sightline_trainer.chat_template import ChatTemplate
from sightline_trainer.execute import execute
from sightline_trainer.pairs.build import read_pairs
from sightline_trainer.recipe import Recipe, load_recipe
from sightline_trainer.runs import RunDirectory

SOURCES = {
    "clip_dpo": {("policy", "policy"), ("right_answer", "wrong_answer")},
    "povid": {("reference", "injected"), ("reference", "noised_image")},
    "bpo": {("reference", "injected"), ("reference", "noised_image")},
    "mixed": {("policy", "policy"), ("reference", "injected")},
    "oracle": {("policy", "policy")},
    "mdpo": {("policy", "policy")},
    "chip": {("policy", "policy")},
    "vdpo": {("reference", "injected"), ("reference", "reference")},
    "selm": {("policy", "policy"), ("reference", "policy")},
    "expo": {("policy", "policy")},
    "sightline": {("policy", "policy")},
    "rpo": {("policy", "policy")},
    "mrpo": {("policy", "policy")},
    "fine_grained": {("reference", "injected")},
    "spa": {("policy", "policy"), ("reference", "injected")},
    "sena": {("policy", "noised_image")},
    "sapo": {("reference", "segment")},
}
# A second iteration differs: its reference is the previous policy, which also gives rewards.
TWICE = ("selm", "mrpo", "spa")
RANKED = ("csr", "vlfeedback", "rlaif_v", "ovip", "sentinel", "finesumfact", "fact_rlhf", "pds_dpo", "illume", "icdpo")
SOURCES |= {name: {("policy", "policy")} for name in RANKED}
TRAINING_FREE = ("vdd", "lacing", "marine")
"""Recipes that train nothing."""
SHORT = {
    "clip_dpo": ["candidates.question_answer.share=0.5", "sampling.candidates=4"],
    "mixed": ["sampling.candidates=4"],
    "oracle": ["sampling.candidates=4"],
    **{name: ["sampling.candidates=4"] for name in ("mdpo", "chip", "expo", "rpo", "sightline")},
    **{name: ["sampling.candidates=4", "iterations=2"] for name in TWICE},
    "ovip": ["sampling.candidates=8"],
}
WITHOUT_GAP = ("spa", "sena", *RANKED)


def short(name: str, services: Services, playground: Path, *overrides: str) -> Recipe:
    return load_recipe(
        ROOT / f"recipes/{name}.yaml",
        [
            "threads=1",
            "iterations=1",
            f"model={ROOT}/playground/weights/llava",
            f"data.train={playground}/train",
            f"data.test={playground}/test",
            "data.prompts_per_iteration=16",
            f"sampling.address={services.sampler}",
            f"reward.address={services.scorer}",
            "evaluation.prompts=8",
            "evaluation.greedy_prompts=0",
            "evaluation.questions=0",
            "evaluation.diverse_prompts=0",
            *SHORT.get(name, []),
            *overrides,
        ],
    )


def test_every_recipe_is_run_here() -> None:
    assert {*SOURCES, *TRAINING_FREE} == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "clip_dpo" else pytest.mark.slow) for n in SOURCES])
def test_a_recipe_runs(name: str, services: Services, playground: Path, tmp_path: Path) -> None:
    recipe, run = short(name, services, playground), RunDirectory(tmp_path / "run")
    table = execute(recipe, run, lambda event: None)
    assert len(table) == recipe.iterations + 1
    assert table[1]["policy_version"] > 0
    later = [list(read_pairs(run.iteration(n) / "pairs.parquet")) for n in range(1, recipe.iterations + 1)]
    pairs = later[0]
    found = {(row["chosen_source"], row["rejected_source"]) for rows in later for row in rows}
    assert found <= SOURCES[name] if name == "selm" else found == SOURCES[name]
    template = ChatTemplate(recipe.processor)
    counts = json.loads((run.iteration(1) / "pairs.json").read_text())
    assert counts["pairs"] == len(pairs)
    for row in pairs:
        assert row["chosen_ids"] != row["rejected_ids"] or row["rejected_images"]
        assert row["rendered_prompt"].count(row["prompt"][0]["content"]) == 1
        if row["chosen_source"] == "policy":
            assert row["margin"] >= 2.0 or name in WITHOUT_GAP
            # A text written here has the tokens that the policy samples for it.
            asked, said = (row[side][0]["content"] for side in ("prompt", "chosen"))
            assert row["chosen_ids"] == template.response(user_turn(asked, 1), said)
            assert row["rendered_prompt"] == template.prompt(user_turn(asked, 1))
        if row["chosen_source"] == "reference":
            assert row["chosen_policy_version"] == -1


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING_FREE)
def test_a_recipe_without_training_is_measured_beside_the_base_model(
    name: str, services: Services, playground: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    recipe = short(name, services, playground, "iterations=0", "evaluation.greedy_prompts=8")
    table = execute(recipe, run, lambda event: None)
    assert [(row["iteration"], row["policy_version"]) for row in table] == [(0, 0), (1, 0)]
    assert "chair_s_change" in table[1]
    assert "kl_to_base" not in table[1]
    plain, decoded = (
        [row["text"] for row in pq.read_table(run.iteration(number) / "captions.parquet").to_pylist()]
        for number in (0, 1)
    )
    assert plain != decoded
    assert execute(recipe, run, lambda event: None) == table


@pytest.mark.slow
def test_the_loss_of_povids_paper_runs(services: Services, playground: Path, tmp_path: Path) -> None:
    noise = "candidates.noised_image={pixels: unit, conditioned: true}"
    recipe = short("povid", services, playground, noise)
    recipe = recipe.model_copy(update={"dpo": recipe.dpo.model_copy(update={"loss": {"povid_paper": 1.0}})})
    run = RunDirectory(tmp_path / "run")
    assert len(execute(recipe, run, lambda event: None)) == 2
    rows = list(read_pairs(run.iteration(1) / "pairs.parquet"))
    assert {bool(row["rejected_images"]) for row in rows} == {True, False}
    for row in rows:
        assert bool(row["rejected_images"]) == (row["rejected_source"] == "noised_image")


@pytest.mark.slow
def test_a_composition_of_other_parts_runs(services: Services, playground: Path, tmp_path: Path) -> None:
    """Sentences, ranks, the policy's log-probs, all pairs, weights, old pairs: a new method is a recipe."""
    recipe = short(
        "clip_dpo",
        services,
        playground,
        "iterations=2",
        "candidates.question_answer=false",
        "candidates.buffer.share=0.5",
        "candidates.reference={}",
        "reward.terms.clip={by: sentence, weight: 0.9}",
        "reward.terms.policy_logprob={weight: 0.1}",
        "reward.combine=rank",
        "filters={finished: {}}",
        "pairing={all_pairs: {max_pairs: 2, among: [policy, reference]}, ith_best_ith_worst: {weight: 0.5}}",
    )
    run = RunDirectory(tmp_path / "run")
    assert len(execute(recipe, run, lambda event: None)) == 3
    pairs = list(read_pairs(run.iteration(2) / "pairs.parquet"))
    assert {row["iteration"] for row in pairs} == {1, 2}
    assert {row["weight"] for row in pairs} <= {0.5, 1.0}
    assert json.loads((run.iteration(2) / "pairs.json").read_text())["pairs_of_earlier_iterations"] > 0


@pytest.mark.slow
def test_another_sampler_tells_p_yes_as_the_policy_does(services: Services, playground: Path, tmp_path: Path) -> None:
    """The same model is asked in both ways: by the probabilities of both words, and by its likeliest first tokens."""
    asked = {"parser": "p_yes", "by": "objects", "templates": {"there": "is there a {object} ?"}}
    terms = {
        "own": {"part": "ask", "who": "policy", **asked},
        "other": {"part": "ask", "who": "sampler", "address": services.sampler, **asked},
    }
    judged = json.dumps({"clip": False, **terms})
    recipe = short("rlaif_v", services, playground, f"reward.terms={judged}", "filters.gap=false")
    run = RunDirectory(tmp_path / "run")
    execute(recipe, run, lambda event: None)
    rows = [row for path in (run.iteration(1) / "scores").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    marks = [(terms["own"], terms["other"]) for row in rows if len(terms := dict(row["terms"])) == 2]
    assert marks
    for own, other in marks:
        assert own == pytest.approx(other, abs=1e-3)


SKILLED = [
    each for each in documented() if each.file.startswith("recipes/") and "playground:llava-skilled" in each.text
]
"""The headers' commands whose judge, editor or guide is the playground's skilled LVLM."""


@pytest.fixture(scope="module")
def skilled(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """The services, with the skilled LVLM behind the sampler."""
    with Processes(tmp_path_factory.mktemp("skilled")) as processes:
        processes.start("sampler", ["engine.model=playground:llava-skilled", "engine.threads=1"])
        yield Services(services.scorer, processes.wait("sampler").grpc, services.metrics)


@pytest.mark.slow
@pytest.mark.parametrize("command", SKILLED, ids=lambda each: Path(each.file).stem)
def test_a_recipe_runs_with_the_skilled_lvlm(
    command: Documented, skilled: Services, playground: Path, tmp_path: Path
) -> None:
    """Its own judge: every judged text has a mark, every request to improve an answer."""
    words = command.words()
    told = [after for before, after in pairwise(words) if before == "--set"]
    name = Path(command.file).stem
    recipe = short(name, skilled, playground, *told, f"model={WEIGHTS}/llava-skilled")
    run = RunDirectory(tmp_path / "run")
    table = execute(recipe, run, lambda event: None)
    if not recipe.iterations:
        assert table[1]["cover"] > 0.5
        return
    assert table[1]["policy_version"] > 0
    rows = [row for path in (run.iteration(1) / "scores").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert rows
    if "ask" in recipe.reward.terms.chosen():
        assert sum("ask" in dict(row["terms"]) for row in rows) >= 0.95 * len(rows)
    pairs = list(read_pairs(run.iteration(1) / "pairs.parquet"))
    assert pairs
    if name == "sena":
        assert {row["chosen_source"] for row in pairs} == {"asked"}
