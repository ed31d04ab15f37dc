"""Suites: turn answers and truth into a `Result`, from any source of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sightline.errors import InvalidInput

from sightline_trainer.evaluation.amber import Amber, generative
from sightline_trainer.evaluation.amber_answers import PARTS, discriminative
from sightline_trainer.evaluation.captions import count_captions
from sightline_trainer.evaluation.chair import Objects
from sightline_trainer.evaluation.coco import CocoTruth, Compat
from sightline_trainer.evaluation.lines import named
from sightline_trainer.evaluation.pope import Answered, Question, Rule, match
from sightline_trainer.evaluation.ratios import Ratio, Ratios
from sightline_trainer.evaluation.result import Result
from sightline_trainer.evaluation.words import ListedNouns, Nouns, Similarity

Progress = Callable[[int, int], None]


def chair_result(
    captions: Sequence[tuple[str, str]],
    truth: CocoTruth,
    objects: Objects,
    *,
    compat: Compat,
    progress: Progress = lambda done, total: None,
) -> Result:
    """CHAIR for captions; see `chair` and `coco`.

    Raises:
        InvalidInput: the truth lacks an image; or, with the official rule, an image's reference captions or instances
            are missing, so that objects named only there would count as hallucinated.
    """
    lacking = half_known(truth, captions)
    if lacking and compat == "official":
        raise InvalidInput(f"{lacking}; the official rule needs both, so CHAIR is not computed", reason="TRUTH_HALF")
    table = count_captions(captions, truth, objects, progress=progress)
    counts = table.chair()
    return Result(
        suite="chair",
        counts={
            "images": len(set(table.images)),
            "captions": counts.captions,
            "hallucinated_captions": counts.hallucinated_captions,
            "mentions": counts.mentions,
            "hallucinated_mentions": counts.hallucinated_mentions,
            "true_objects": counts.true_objects,
            "covered_objects": counts.covered_objects,
        },
        ratios=table.ratios(),
        settings={"compat": compat},
        differs=[]
        if compat == "official"
        else [
            *([lacking] if lacking else []),
            "words that the official script misses by mistake are read (bus, ties, cheesecake, ...); --compat official",
        ],
        details=table.details(),
    )


def half_known(truth: CocoTruth, captions: Sequence[tuple[str, str]]) -> str:
    """What is missing if only COCO's instances or only its reference captions are given, or ""."""
    for kind, images in truth.lacks(dict.fromkeys(image for image, _ in captions)).items():
        files = "captions_*.json (the annotators' captions)" if kind == "captions" else "instances_*.json"
        return (
            f"the truth of {len(images)} images lacks COCO's {kind}: image {named(images)}; add --truth {files} of the "
            "same split, or true objects count as hallucinated"
        )
    return ""


def pope_result(
    questions: Sequence[Question], answers: Mapping[str, str], *, rule: Rule = "official", checked: str = ""
) -> Result:
    """POPE for answers; each kind of question is a separate part. `checked`: how answers were matched."""
    answered = match(questions, answers, rule)
    counts, ratios = confusion_counts(answered), parts_of(answered)
    return Result(
        suite="pope",
        counts=counts | {"read_differently_by_other_rule": answered.read_differently()},
        ratios=ratios,
        settings={"rule": rule} | ({"matched_by": checked} if checked else {}),
        differs=[]
        if rule == "official"
        else ["answers are read by words in any case; the official rule is --rule official"],
        details=answered.details(),
    )


def confusion_counts(answered: Answered) -> dict[str, int]:
    """TP, FP, TN, FN and questions, for all and for each kind."""
    counts: dict[str, int] = {}
    kinds = answered.kinds()
    for kind in [None, *(kinds if len(kinds) > 1 else [])]:
        table, prefix = answered.confusion(kind), f"{kind}/" if kind else ""
        for name in ("tp", "fp", "tn", "fn", "total"):
            counts[f"{prefix}{'questions' if name == 'total' else name}"] = getattr(table, name)
    return counts


def parts_of(answered: Answered) -> Ratios:
    """The metrics of all questions, and of each kind as "kind/metric", over the same images."""
    whole, kinds = answered.ratios(), answered.kinds()
    return joined(whole, {kind: answered.ratios(kind) for kind in (kinds if len(kinds) > 1 else [])})


def joined(whole: Ratios, parts: Mapping[str, Ratios]) -> Ratios:
    """`whole` with the metrics of its parts as "part/metric", over all of its images."""
    import numpy as np

    place = {image: at for at, image in enumerate(whole.images)}
    of = dict(whole.of)
    for part, ratios in parts.items():
        at = np.array([place[image] for image in ratios.images], dtype=np.intp)
        for name, ratio in ratios.of.items():
            above, below = np.zeros(len(place)), np.zeros(len(place))
            above[at], below[at] = ratio.above, ratio.below
            of[f"{part}/{name}"] = Ratio(above, below)
    return Ratios(whole.images, of)


def amber_result(
    responses: Mapping[int, str],
    amber: Amber,
    *,
    similarity: Similarity,
    nouns: Nouns | None = None,
    compat: Compat = "mended",
) -> Result:
    """AMBER: the generative part if any of its images is answered, and likewise each discriminative one."""
    counts: dict[str, int] = {}
    official: dict[str, Any] = {}
    differs: list[str] = []
    tables: dict[str, Ratios] = {}
    if any(number in responses for number in amber.generative()):
        nouns = nouns or ListedNouns(amber.words())
        table = generative(responses, amber, nouns, similarity, compat)
        tables["generative"] = table.ratios()
        counts |= {
            "responses": len(table.counts),
            "nouns": sum(len(one.nouns) for one in table.counts),
            "hallucinated_nouns": sum(len(one.hallucinated) for one in table.counts),
        }
        official["generative"] = table.official()
        differs += [text for text in (nouns.differs, similarity.differs) if text]
    answers = discriminative(responses, amber, compat)
    if answers.answers:
        tables["discriminative"] = answers.ratios()
        official["discriminative"] = answers.official()
        for part in answers.present():
            tables[part] = answers.ratios(part)
            official[part] = answers.official(part)
        counts |= {"questions": len(answers.answers), "neither_yes_nor_no": answers.unread()}
        counts |= {f"{part}/questions": len(tables[part].images) for part in PARTS if part in tables}
    if compat == "mended":
        differs.append("the official script's mistakes are fixed and nothing is rounded; --compat official keeps them")
    images = tuple(dict.fromkeys(image for ratios in tables.values() for image in ratios.images))
    return Result(
        suite="amber",
        counts=counts,
        ratios=joined(Ratios(images, {}), tables),
        settings={"compat": compat},
        differs=differs,
        official=official if compat == "official" else {},
    )
