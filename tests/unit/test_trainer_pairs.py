"""Filters and pair rules on hand-made candidates."""

from pathlib import Path

from PIL import Image
from sightline_trainer.candidates.policy import Candidate
from sightline_trainer.pairs.build import build, read_pairs, write_pairs
from sightline_trainer.pairs.filters import candidate_fault, pair_fault
from sightline_trainer.pairs.rules import best_worst
from sightline_trainer.prompts import Prompt
from sightline_trainer.recipe import Filters
from sightline_trainer.rewards.clip import Score
from sightline_trainer.rollout import Scored

FILTERS = Filters(min_gap=2.0, max_length_ratio=1.5, min_score=10.0, min_tokens=2)


def scored(
    index: int, reward: float | None, *, text: str = "", tokens: int = 4, finish: str = "eos", version: int = 3
) -> Scored:
    candidate = Candidate(
        prompt_id="p",
        index=index,
        text=text or f"text {index}",
        token_ids=list(range(tokens)),
        logprobs=[-1.0] * tokens,
        finish_reason=finish,
        seed=index,
        policy_version=version,
        rendered_prompt="USER: <image>\nlook ASSISTANT:",
    )
    return Scored(candidate, Score(reward))


def test_candidates_are_dropped_for_the_reason_that_is_true() -> None:
    assert candidate_fault(scored(0, 20.0), FILTERS) is None
    assert candidate_fault(scored(0, None), FILTERS) == "unscored"
    assert candidate_fault(scored(0, 20.0, finish="length"), FILTERS) == "unfinished"
    assert candidate_fault(scored(0, 20.0, tokens=1), FILTERS) == "too_short"
    assert candidate_fault(scored(0, 9.99), FILTERS) == "low_score"


def test_a_pair_needs_the_gap_and_a_similar_length() -> None:
    assert pair_fault(scored(0, 22.0), scored(1, 20.0), FILTERS) is None  # a gap of exactly 2 counts
    assert pair_fault(scored(0, 21.99), scored(1, 20.0), FILTERS) == "small_gap"
    assert pair_fault(scored(0, 30.0, tokens=6), scored(1, 20.0, tokens=4), FILTERS) is None  # 6 / 4 = 1.5
    assert pair_fault(scored(0, 30.0, tokens=7), scored(1, 20.0, tokens=4), FILTERS) == "length_differs"
    assert pair_fault(scored(0, 30.0, text="a"), scored(1, 20.0, text="a"), FILTERS) == "duplicate"


def test_best_against_worst() -> None:
    pairs, reason = best_worst([scored(0, 21.0), scored(1, 25.0), scored(2, 19.0), scored(3, 24.0)], FILTERS)
    assert reason is None
    assert [(chosen.candidate.index, rejected.candidate.index) for chosen, rejected in pairs] == [(1, 2)]


def test_where_the_lengths_differ_the_widest_fitting_gap_is_taken() -> None:
    group = [
        scored(0, 30.0, tokens=10),
        scored(1, 28.0, tokens=5),
        scored(2, 20.0, tokens=4),
        scored(3, 27.0, tokens=9),
    ]
    # 0-2 has the widest gap but 10 / 4 > 1.5; of the fitting pairs 1-2 (gap 8) beats 0-3 (gap 3).
    pairs, reason = best_worst(group, FILTERS)
    assert reason is None
    assert [(chosen.candidate.index, rejected.candidate.index) for chosen, rejected in pairs] == [(1, 2)]


def test_no_pair_says_why() -> None:
    assert best_worst([scored(0, 20.0)], FILTERS) == ([], "too_few")
    assert best_worst([scored(0, 20.0), scored(1, 19.0)], FILTERS) == ([], "small_gap")
    assert best_worst([scored(0, 30.0, tokens=9), scored(1, 20.0)], FILTERS) == ([], "length_differs")


def test_pairs_file_is_in_trls_format_and_names_both_versions(tmp_path: Path) -> None:
    image = tmp_path / "scene.png"
    Image.new("RGB", (8, 8), "red").save(image)
    prompts = [Prompt(id="p", image=image, prompt="look"), Prompt(id="q", image=image, prompt="look")]
    rollouts = {
        "p": [scored(0, 30.0, version=4), scored(1, 20.0, version=4), scored(2, 25.0, text="text 0", version=4)],
        "q": [scored(0, 30.0), scored(1, None)],
    }
    rows, counts = build(prompts, rollouts, FILTERS, iteration=5)
    assert counts == {"pairs": 1, "candidate_duplicate": 1, "candidate_unscored": 1, "prompt_too_few": 1}
    write_pairs(tmp_path / "pairs.parquet", rows)
    (row,) = read_pairs(tmp_path / "pairs.parquet")
    assert row["images"][0].size == (8, 8)
    assert row["prompt"] == [{"role": "user", "content": "look"}]
    assert row["chosen"] == [{"role": "assistant", "content": "text 0"}]
    assert row["rejected"] == [{"role": "assistant", "content": "text 1"}]
    assert (row["chosen_policy_version"], row["rejected_policy_version"]) == (4, 4)
    assert (row["margin"], row["iteration"]) == (10.0, 5)
    from datasets import load_dataset

    loaded = load_dataset(
        "parquet", data_files=str(tmp_path / "pairs.parquet"), split="train", cache_dir=tmp_path / "c"
    )
    assert loaded[0]["chosen"] == row["chosen"]
    assert loaded[0]["images"][0].size == (8, 8)
