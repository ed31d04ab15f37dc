"""Filters, pair rules and the pairs file, on hand-made candidates."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from field import controls
from PIL import Image
from pydantic import ValidationError
from sightline.errors import PreconditionFailed
from sightline_trainer.candidates.buffer import Buffer
from sightline_trainer.pairs import FILTERS, RULES
from sightline_trainer.pairs.build import PairBuilder, read_pairs, to_train_on, write_pairs
from sightline_trainer.pairs.filters import Degenerate, Duplicates, Finished, Gap, GenericQuestion, Lengths, ScoreFloor
from sightline_trainer.pairs.image_contrast import ImageContrast
from sightline_trainer.pairs.rule import RulePart
from sightline_trainer.pairs.rules import (
    AllPairs,
    BestWorst,
    EachGood,
    IthBestIthWorst,
    ReferenceAgainstRejected,
    TopBottom,
)
from sightline_trainer.pairs.text_in_image import TextInImage
from sightline_trainer.recipe import load_recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.records.response import Response
from sightline_trainer.records.score import Score


def scored(
    index: int,
    reward: float | None,
    *,
    text: str = "",
    tokens: int = 4,
    finish: str = "eos",
    version: int = 3,
    source: str = "policy",
    prompt: str = "look",
    **terms: float,
) -> Response:
    candidate = Response(
        prompt_id="p",
        index=index,
        text=text or f"text {index}",
        token_ids=list(range(tokens)),
        logprobs=[-1.0] * tokens,
        finish_reason=finish,
        seed=index,
        policy_version=version,
        rendered_prompt="USER: <image>\nlook ASSISTANT:",
        prompt=prompt,
        source=source,
    )
    return replace(candidate, score=Score(reward, terms=terms))


def indices(pairs: list[tuple[Response, Response, float]]) -> list[tuple[int, int]]:
    return [(chosen.index, rejected.index) for chosen, rejected, _ in pairs]


def fine(chosen: Response, rejected: Response) -> None:
    return None


def test_candidates_are_dropped_for_the_reason_that_is_true() -> None:
    assert Finished().candidate_fault(scored(0, 20.0)) is None
    assert Finished().candidate_fault(scored(0, 20.0, finish="length")) == "unfinished"
    lengths = Lengths(min_tokens=2, max_tokens=5)
    assert [lengths.candidate_fault(scored(0, 20.0, tokens=n)) for n in (1, 2, 5, 6)] == [
        "too_short", None, None, "too_long",
    ]  # fmt: skip
    assert ScoreFloor(min=10).candidate_fault(scored(0, 9.99)) == "low_score"
    assert ScoreFloor(min=10).candidate_fault(scored(0, 10.0)) is None
    assert ScoreFloor(min=10, of="clip").candidate_fault(scored(0, 50.0, clip=9.0)) == "low_score"
    assert ScoreFloor(min=10, of="clip").candidate_fault(scored(0, 50.0)) == "unscored"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a red star and a blue ring .", None),
        ("no .", None),
        ("a red star and " * 3 + "a ring", None),
        ("a red star and " * 4 + "a ring", "degenerate"),
        ("there is a cat. It sleeps. There is a cat.", "degenerate"),
        ("1234 5678 .... !!!! cat", "degenerate"),
    ],
)
def test_degenerate_texts(text: str, fault: str | None) -> None:
    assert Degenerate().candidate_fault(scored(0, 1.0, text=text)) == fault


def test_generic_questions_are_judged_by_their_own_score() -> None:
    rule = GenericQuestion(min_score=20)
    assert rule.candidate_fault(scored(0, 50.0, source="wrong_answer", question=19.0)) == "generic_question"
    assert rule.candidate_fault(scored(0, 50.0, source="right_answer", question=20.0)) is None
    assert rule.candidate_fault(scored(0, 50.0, question=19.0)) is None  # no question


def test_pairs_are_dropped_for_the_reason_that_is_true() -> None:
    gap, lengths = Gap(), Lengths(max_ratio=1.5)
    assert gap.pair_fault(scored(0, 22.0), scored(1, 20.0)) is None  # a gap of exactly 2 counts
    assert gap.pair_fault(scored(0, 21.99), scored(1, 20.0)) == "small_gap"
    assert Gap(of="clip").pair_fault(scored(0, 90.0, clip=20.0), scored(1, 1.0, clip=19.0)) == "small_gap"
    assert lengths.pair_fault(scored(0, 30.0, tokens=6), scored(1, 20.0, tokens=4)) is None  # 6 / 4 = 1.5
    assert lengths.pair_fault(scored(0, 30.0, tokens=7), scored(1, 20.0, tokens=4)) == "length_differs"
    one, other = scored(0, 1.0, text="A red star."), scored(1, 0.0, text="a red star .")
    assert Duplicates().pair_fault(one, other) == "duplicate"
    assert Duplicates().pair_fault(one, scored(1, 0.0, text="star red a")) is None
    half = scored(1, 0.0, text="a red ring")  # 2 of 4 words
    assert Duplicates(max_overlap=0.5).pair_fault(one, half) == "duplicate"
    assert Duplicates(max_overlap=0.6).pair_fault(one, half) is None


def test_writing_in_images_is_read_by_tesseract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = tmp_path / "tesseract"  # a stand-in that finds what the file holds
    reader.write_text('#!/bin/sh\ncat "$1"\n')
    reader.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    images = {name: tmp_path / name for name in ("plain", "sign")}
    images["plain"].write_text(". - \n")
    images["sign"].write_text("STOP\n")
    rule = TextInImage()
    faults = {name: rule.prompt_fault(Prompt("p", (image,), "look")) for name, image in images.items()}
    assert faults == {"plain": None, "sign": "text_in_image"}
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PreconditionFailed, match="leave the filter out"):
        rule.prompt_fault(Prompt("p", (tmp_path / "other",), "look"))
    with pytest.raises(ValidationError):
        TextInImage.model_validate({"reader": ["rm", "-rf"]})


def test_best_against_worst() -> None:
    group = [scored(0, 21.0), scored(1, 25.0), scored(2, 19.0), scored(3, 24.0), scored(4, 99.0, source="reference")]
    picked = BestWorst(weight=0.5).pick(group, fine)
    assert indices(picked.pairs) == [(1, 2)]
    assert picked.pairs[0][2] == 0.5
    assert indices(BestWorst(among=[]).pick(group, fine).pairs) == [(4, 2)]
    assert BestWorst().pick(group[:1], fine).lacking == "too_few"
    assert BestWorst().pick([scored(0, 20.0), scored(1, 19.0)], Gap().pair_fault).dropped == ["small_gap"]


def test_where_the_lengths_differ_the_widest_fitting_gap_is_taken() -> None:
    group = [
        scored(0, 30.0, tokens=10),
        scored(1, 28.0, tokens=5),
        scored(2, 20.0, tokens=4),
        scored(3, 27.0, tokens=9),
    ]
    # 0-2 has the widest gap but 10 / 4 > 1.5; of the fitting pairs 1-2 (gap 8) beats 0-3 (gap 3).
    assert indices(BestWorst().pick(group, Lengths().pair_fault).pairs) == [(1, 2)]
    picked = BestWorst().pick([scored(0, 30.0, tokens=9), scored(1, 20.0)], Lengths().pair_fault)
    assert picked.dropped == ["length_differs"]


def ranked(*rewards: float) -> list[Response]:
    return [scored(i, reward) for i, reward in enumerate(rewards)]


REFERENCE = scored(9, 0.0, source="reference", text="what is there")


@pytest.mark.parametrize(
    ("group", "pairs"),
    [
        (ranked(9, 5, 2), [(0, 2)]),  # small group: 9 - 2 >= 4 and 9 >= 6
        (ranked(9, 8, 6), []),  # 3 apart, and the worst is over 5
        (ranked(5, 4, 1), [(9, 2)]),  # best under 6: the reference faces the worst
        (ranked(9, 9, 9, 9, 9, 9, 9, 1), [(0, 7)]),  # std 2.83: 8 > 5.66, then 9 - 9
        (ranked(10, 10, 5, 5, 5, 5, 0, 0), [(0, 7), (1, 6)]),  # std 3.78: bound 7.56; 10 - 0 twice, then 5 - 5
        (ranked(7, 6, 6, 6, 6, 6, 5, 4), [(9, 7)]),  # std under 1.5 counts as 1.5: 7 - 4 is not over 3
        (ranked(5, 5, 5, 5, 1), [(9, 4)]),  # best under 6, worst at most 5
    ],
)
def test_ovips_rule(group: list[Response], pairs: list[tuple[int, int]]) -> None:
    assert indices(IthBestIthWorst().pick([*group, REFERENCE], fine).pairs) == pairs


def test_ovips_rule_stops_at_its_number_of_pairs_and_works_without_a_reference() -> None:
    many = ranked(*[10.0] * 8, *[0.0] * 8)
    assert indices(IthBestIthWorst(factor=1.5).pick(many, fine).pairs) == [(0, 15), (1, 14), (2, 13)]
    assert IthBestIthWorst().pick(ranked(5, 4, 1), fine).lacking == "too_close"


def test_reference_against_rejected() -> None:
    group = [
        scored(0, 1.0, source="reference"),
        scored(1, 5.0, source="injected"),
        scored(2, 0.0, source="noised_image"),
        scored(3, 9.0),
    ]
    rule = ReferenceAgainstRejected(rejected={"injected": 0.5, "noised_image": 0.25}, weight=2.0)
    picked = rule.pick(group, fine)
    assert indices(picked.pairs) == [(0, 1), (0, 2)]  # whatever the rewards
    assert [weight for *_, weight in picked.pairs] == [1.0, 0.5]
    assert rule.pick(group[1:], fine).lacking == "no_reference"
    assert rule.pick(group[:1], fine).lacking == "no_rejected"


def test_all_pairs_and_top_against_bottom() -> None:
    group = ranked(4, 3, 3, 1)
    assert indices(AllPairs().pick(group, fine).pairs) == [(0, 3), (1, 3), (2, 3), (0, 1), (0, 2)]
    assert indices(AllPairs(max_pairs=2).pick(group, fine).pairs) == [(0, 3), (1, 3)]
    assert indices(TopBottom(k=2).pick(ranked(5, 4, 3, 2, 1), fine).pairs) == [(0, 4), (0, 3), (1, 4), (1, 3)]
    assert indices(TopBottom(k=2).pick(ranked(5, 4, 3), fine).pairs) == [(0, 2)]  # no candidate on both sides


@pytest.mark.field
@pytest.mark.parametrize(
    "rule",
    [
        BestWorst(), TopBottom(k=3), *controls(AllPairs()),
        IthBestIthWorst(floor=0.0, small_gap=0.0, factor=0.0), IthBestIthWorst(floor=0.0, small_gap=0.0, small_group=9),
        IthBestIthWorst(ceiling=9.0),
    ],
    ids=["best_worst", "top_bottom", "all_pairs", "ith", "ith_small", "ith_reference"],
)  # fmt: skip
def test_a_tie_is_no_preference_in_any_rule(rule: RulePart) -> None:
    equal = [*ranked(*[5.0] * 6), scored(9, 5.0, source="reference")]
    picked = rule.pick(equal, fine)
    assert picked.pairs == []
    assert set(picked.dropped) <= {"tie"}
    assert picked.dropped or picked.lacking


@pytest.mark.field
def test_a_tie_among_others_is_left_out() -> None:
    assert indices(TopBottom(k=2).pick(ranked(5, 3, 3, 1), fine).pairs) == [(0, 3), (0, 2), (1, 3)]
    group = [scored(0, 30.0, tokens=10), scored(1, 20.0, tokens=5), scored(2, 20.0, tokens=4)]
    # Lengths that do not fit: the pair that fits is a tie, and does not take the place of the widest.
    assert BestWorst().pick(group, Lengths().pair_fault).pairs == []


@pytest.mark.field
def test_what_is_right_by_its_source_does_not_tie_where_nobody_judged() -> None:
    rule, sides = ReferenceAgainstRejected(), ("reference", "injected")
    judged = [scored(number, 7.0, source=source, clip=7.0) for number, source in enumerate(sides)]
    assert rule.pick(judged, fine).dropped == ["tie"]
    unjudged = [scored(number, 0.0, source=source) for number, source in enumerate(sides)]
    assert indices(rule.pick(unjudged, fine).pairs) == [(0, 1)]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path


def builder(iteration: int = 5, **filters: Any) -> PairBuilder:
    chosen = {name: FILTERS[name].model_validate(value) for name, value in filters.items()}
    rules = {"best_worst": RULES["best_worst"]()}
    return PairBuilder(chosen, rules, iteration=iteration)


def test_pairs_file_is_in_trls_format_and_names_both_versions(tmp_path: Path, image: Path) -> None:
    prompts = {name: Prompt(id=name, images=(image,), prompt="look") for name in "pqrs"}
    rollouts = {
        "p": [scored(0, 30.0, version=4), scored(1, 20.0, version=4), scored(2, 25.0, text="text 0", version=4)],
        "q": [scored(0, 30.0), scored(1, None)],
        "r": [scored(0, 30.0), scored(1, 29.0)],
        "s": [scored(0, 30.0, prompt="a"), scored(1, 20.0, prompt="b")],  # answers to different texts are never paired
    }
    build = builder(gap={"min": 2.0})
    path = tmp_path / "pairs.parquet"
    assert write_pairs(path, build.build(prompts, rollouts.items())) == 1
    assert build.counts == {
        "pairs": 1,
        "candidate_duplicate": 1,
        "candidate_unscored": 1,
        "pair_small_gap": 1,
        "prompt_too_few": 2,
        "prompt_small_gap": 1,
    }
    (row,) = read_pairs(path)
    assert row["images"][0].size == (8, 8)
    assert row["prompt"] == [{"role": "user", "content": "look"}]
    assert row["chosen"] == [{"role": "assistant", "content": "text 0"}]
    assert row["rejected"] == [{"role": "assistant", "content": "text 1"}]
    assert (row["chosen_policy_version"], row["rejected_policy_version"]) == (4, 4)
    assert (row["margin"], row["weight"], row["iteration"]) == (10.0, 1.0, 5)
    assert (row["rule"], row["chosen_source"], row["rejected_source"]) == ("best_worst", "policy", "policy")
    from datasets import load_dataset

    loaded = load_dataset(
        "parquet", data_files=str(tmp_path / "pairs.parquet"), split="train", cache_dir=tmp_path / "c"
    )
    assert loaded[0]["chosen"] == row["chosen"]
    assert loaded[0]["images"][0].size == (8, 8)


def test_weights_of_one_are_left_out_of_the_update(tmp_path: Path, image: Path) -> None:
    prompts, rollouts = {"p": Prompt("p", (image,), "look")}, {"p": [scored(0, 3.0), scored(1, 1.0)]}
    write_pairs(tmp_path / "a.parquet", builder().build(prompts, rollouts.items()))
    assert {"weight", "rejected_images"}.isdisjoint(to_train_on(tmp_path / "a.parquet").column_names)
    halved = builder()
    halved.rules = {"best_worst": BestWorst(weight=0.5)}
    write_pairs(tmp_path / "b.parquet", halved.build(prompts, rollouts.items()))
    assert to_train_on(tmp_path / "b.parquet")["weight"][:] == [0.5]
    rollouts["p"][1] = replace(rollouts["p"][1], images=[image.read_bytes()])
    write_pairs(tmp_path / "c.parquet", builder().build(prompts, rollouts.items()))
    assert to_train_on(tmp_path / "c.parquet")[0]["rejected_images"][0].size == (8, 8)


def test_images_with_a_fault_have_no_pairs(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = builder(text_in_image={})
    monkeypatch.setattr(TextInImage, "prompt_fault", lambda self, prompt: "text_in_image")
    rows = build.build({"p": Prompt("p", (image,), "look")}, [("p", [scored(0, 3.0), scored(1, 1.0)])])
    assert list(rows) == []
    assert build.counts == {"pairs": 0, "prompt_text_in_image": 1}


def test_a_buffer_draws_pairs_of_earlier_iterations_within_its_bounds(tmp_path: Path, image: Path) -> None:
    files = [tmp_path / f"{number:04d}" / "pairs.parquet" for number in (1, 2, 3)]
    for number, path in enumerate(files, 1):
        prompts = {f"{number}-{i}": Prompt(f"{number}-{i}", (image,), "look") for i in range(10)}
        rows = list(builder(number).build(prompts, [(name, [scored(0, 3.0), scored(1, 1.0)]) for name in prompts]))
        if number == 3:  # what it took from a buffer itself is not drawn again
            rows += read_rows(files[1])[:5]
        write_pairs(path, rows)
    draw: Callable[..., list[dict[str, Any]]] = lambda **values: list(  # noqa: E731
        Buffer(**values).draw(files, 30, seed=1)
    )
    assert {row["iteration"] for row in draw(max_age=1, share=0.25)} == {3}
    assert len(draw(max_age=1, share=0.25)) == 10  # 30 * 0.25 / 0.75, and all that there are
    assert len(draw(max_age=3, share=0.1)) == 3
    rows = draw(max_age=2, share=0.4)
    assert {row["iteration"] for row in rows} == {2, 3}
    assert len({row["prompt_id"] for row in rows}) == len(rows) == 20
    assert draw(max_age=2, share=0.25) == draw(max_age=2, share=0.25)
    write_pairs(tmp_path / "all.parquet", rows)
    assert read_pairs(tmp_path / "all.parquet")[0]["images"][0].size == (8, 8)


def read_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


@pytest.mark.field
def test_a_gap_of_exactly_two_is_kept_whatever_the_floats_say() -> None:
    gap = Gap(min=2.0)
    for cents in range(9800):
        worse, better = round(cents / 100, 2), round((cents + 200) / 100, 2)
        assert gap.pair_fault(scored(0, better), scored(1, worse)) is None, cents
        assert gap.pair_fault(scored(0, round(better - 0.01, 2)), scored(1, worse)) == "small_gap"


@pytest.mark.field
def test_a_bound_that_is_met_exactly_is_met() -> None:
    short, fitting, long = (scored(0, 1.0, tokens=count) for count in (50, 115, 116))
    lengths = Lengths(max_ratio=2.3)  # 2.3 * 50 is 114.99999999999999
    assert lengths.pair_fault(fitting, short) is None
    assert lengths.pair_fault(long, short) == "length_differs"
    letters = "abcdefghijklmn" + "1" * 11  # 14 of 25; 0.56 * 25 is 14.000000000000002
    assert Degenerate(min_letters=0.56).candidate_fault(scored(0, 1.0, text=letters)) is None
    assert Degenerate(min_letters=0.57).candidate_fault(scored(0, 1.0, text=letters)) == "degenerate"
    rule = IthBestIthWorst(small_gap=2.0, floor=0.0)
    assert len(rule.pick([scored(0, 4.1), scored(1, 2.1)], fine).pairs) == 1


@pytest.mark.field
def test_bpos_filter_drops_a_prompt_of_which_any_answer_has_too_many_words() -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes/bpo.yaml")
    length = recipe.filters.chosen()["length"]
    assert length.max_words == 350
    fits, long = (scored(n, 1.0, text=" ".join(["word"] * (350 + n))) for n in (0, 1))
    assert length.group_fault([fits, fits]) is None
    assert length.group_fault([fits, long]) == "too_many_words"
    builder = PairBuilder({"length": length}, {"best_worst": BestWorst()}, iteration=1)
    prompts = {fits.prompt_id: Prompt(fits.prompt_id, (Path("x.png"),), "p")}
    assert list(builder.build(prompts, [(fits.prompt_id, [fits, long])])) == []
    assert builder.counts["prompt_too_many_words"] == 1


def test_each_good_one_faces_the_worst() -> None:
    rule = EachGood(min=5.0)
    group = [scored(0, 9.0), scored(1, 5.0), scored(2, 4.99), scored(3, 1.0)]
    assert indices(rule.pick(group, fine).pairs) == [(0, 3), (1, 3)]
    assert indices(EachGood(min=5.0, max_pairs=1).pick(group, fine).pairs) == [(0, 3)]
    # All are good: the worst is paired with the others, but not with its equal.
    picked = rule.pick([scored(0, 9.0), scored(1, 6.0), scored(2, 6.0)], fine)
    assert (indices(picked.pairs), picked.dropped) == ([(0, 2)], ["tie"])
    assert rule.pick([scored(0, 4.0), scored(1, 3.0)], fine).lacking == "none_good"
    assert rule.pick([scored(0, 9.0)], fine).lacking == "too_few"


@pytest.mark.parametrize("view", ["noise", "crop"])
def test_image_contrast_is_one_text_under_two_pictures(tmp_path: Path, view: Any) -> None:
    image = tmp_path / "a.png"
    Image.effect_noise((40, 30), 80.0).convert("RGB").save(image)
    prompt = Prompt("p", (image,), "look")
    builder = PairBuilder({"gap": Gap()}, {"image_contrast": ImageContrast(view=view, weight=0.5)}, iteration=1)
    rows = list(builder.build({"p": prompt}, [("p", [scored(0, 1.0), scored(1, 3.0), scored(2, 9.0, source="x")])]))
    assert [(row["chosen_index"], row["rejected_index"], row["weight"]) for row in rows] == [(1, 1, 0.5)]
    assert rows[0]["chosen_ids"] == rows[0]["rejected_ids"]
    write_pairs(tmp_path / "pairs.parquet", rows)
    kept = to_train_on(tmp_path / "pairs.parquet")[0]
    assert kept["rejected_images"][0].size == kept["images"][0].size == (40, 30)
    assert kept["rejected_images"][0].tobytes() != kept["images"][0].tobytes()
    # The same iteration shows the same picture, another one another.
    rule = builder.rules["image_contrast"]
    assert rule.rejected_images(prompt, 1)[0] == rows[0]["rejected_images"][0]["bytes"]
    assert rule.rejected_images(prompt, 2)[0] != rows[0]["rejected_images"][0]["bytes"]


def test_pairs_tell_what_was_sampled_first_and_how_the_picture_is_embedded(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(image)
    group = [scored(0, 1.0, source="reference"), scored(1, 2.0, tokens=3), scored(2, 9.0), scored(3, 0.0)]
    builder = PairBuilder({}, {"best_worst": BestWorst()}, iteration=1, own=True, embeddings={"p": [1.0, 0.0]})
    rows = list(builder.build({"p": Prompt("p", (image,), "look")}, [("p", group)]))
    assert (rows[0]["chosen_index"], rows[0]["rejected_index"]) == (2, 3)
    assert (rows[0]["own_ids"], rows[0]["embedding"]) == ([0, 1, 2], [1.0, 0.0])
    write_pairs(tmp_path / "pairs.parquet", rows)
    assert {"own_ids", "embedding"} <= set(to_train_on(tmp_path / "pairs.parquet").column_names)
    # If no loss asks for them they are empty, and the update does not see them.
    plain = list(
        PairBuilder({}, builder.rules, iteration=1).build({"p": Prompt("p", (image,), "look")}, [("p", group)])
    )
    write_pairs(tmp_path / "plain.parquet", plain)
    assert {"own_ids", "embedding"}.isdisjoint(to_train_on(tmp_path / "plain.parquet").column_names)
    # Pairs of a release without these columns are read.
    old = pq.read_table(tmp_path / "plain.parquet").drop_columns(["own_ids", "embedding"])
    pq.write_table(old, tmp_path / "old.parquet")
    assert read_pairs(tmp_path / "old.parquet")[0]["own_ids"] == []


def test_sources_alone_decide_where_rewards_are_no_judge() -> None:
    group = [scored(0, 0.0, source="reference", clip=1.0), scored(1, 0.0, source="injected", clip=1.0)]
    assert ReferenceAgainstRejected().pick(group, fine).dropped == ["tie"]
    assert indices(ReferenceAgainstRejected(judged=False).pick(group, fine).pairs) == [(0, 1)]
