"""All numbers of the model card, measured on held-out test scenes through the libraries' ordinary loaders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any, Final

from sightline_playground import clip_model, llava_model
from sightline_playground.captions import (
    PROMPTS,
    plain_caption,
    trained_caption,
    true_caption,
    with_companion,
    without_one,
)
from sightline_playground.drawing import draw
from sightline_playground.llava_model import MAX_NEW_TOKENS
from sightline_playground.llava_training import chat
from sightline_playground.metrics import answer_metrics, caption_metrics
from sightline_playground.mixture import text_loss, texts
from sightline_playground.questions import KINDS, questions
from sightline_playground.sampling import answers
from sightline_playground.scenes import Scene, scenes
from sightline_playground.tokens import EOS
from sightline_playground.truth import companions_absent
from sightline_playground.world import stream

SCENES: Final = 500
"""Test scenes for the scorer and for captions."""
SEED: Final = 20_000
"""Seed of the test scenes; there is no default elsewhere, so that no tuning uses them by accident."""
CANDIDATES: Final = 8
MIN_GAP: Final = 2.0
"""CLIPScore points: the pair rule of CLIP-DPO's recipe."""

Tell = Callable[[str], None]


def measure(weights: Path, tell: Tell = lambda _: None) -> dict[str, float]:
    """Every number by its name, for the weights under `weights`/clip and `weights`/llava."""
    test = scenes("test", SCENES, SEED)
    tell("scorer: true captions against false ones")
    clip, _, tokenizer = clip_model.load(weights / "clip")
    numbers = scorer_numbers(clip, tokenizer, test)
    model, processor = llava_model.load(weights / "llava")
    rng = stream("measure", "prompts")
    prompts = [rng.choice(PROMPTS) for _ in test]
    for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        tell(f"captions, {name}")
        told = caption_metrics(test, answers(model, processor, test, prompts, temperature))
        numbers |= {f"{name}_{key}": value for key, value in vars(told).items()}
    tell("yes/no questions")
    numbers |= question_numbers(model, processor, test[:200])
    tell("text alone, and the second of two pictures")
    numbers |= language_numbers(model, processor, test[:200])
    tell(f"gaps among {CANDIDATES} candidates")
    return numbers | gap_numbers(model, processor, clip, tokenizer, test[:100])


def scorer_numbers(clip: Any, tokenizer: Any, test: list[Scene]) -> dict[str, float]:
    """How well the scorer separates true captions from ones with an added companion, and with an object left out."""
    rng = stream("measure", "scorer")
    images = clip_model.pixels([draw(scene) for scene in test])
    added = {n: with_companion(scene, rng) for n, scene in enumerate(test) if companions_absent(scene)}
    dropped = {n: without_one(scene, rng) for n, scene in enumerate(test) if len(scene.items) > 1}
    other = [(true_caption(s, rng), true_caption(t, rng)) for s, t in zip(test, test[1:] + test[:1], strict=True)]
    numbers: dict[str, float] = {}
    for name, pairs in (("added", added), ("dropped", dropped), ("other", dict(enumerate(other)))):
        scores = clip_model.clip_scores(clip, tokenizer, images[list(pairs)], list(pairs.values()))
        gaps = [true - false for true, false in scores]
        numbers[f"clip_{name}_accuracy"] = fmean(gap > 0 for gap in gaps)
        tenths = quantiles(gaps, n=10)
        numbers[f"clip_{name}_gap_p10"], numbers[f"clip_{name}_gap_p50"], numbers[f"clip_{name}_gap_p90"] = (
            tenths[0],
            tenths[4],
            tenths[8],
        )
        if name == "added":
            numbers["clip_true_score"] = fmean(true for true, _ in scores)
    return numbers


def question_numbers(model: Any, processor: Any, test: list[Scene]) -> dict[str, float]:
    """Greedy accuracy per kind of question, and how often "yes" is answered about something absent."""
    rng = stream("measure", "questions")
    asked = [(scene, question) for scene in test for question in questions(scene, rng)]
    said = answers(model, processor, [scene for scene, _ in asked], [q.text for _, q in asked], temperature=0.0)
    numbers: dict[str, float] = {}
    for kind in KINDS:
        rows = [(q.label, text) for (_, q), text in zip(asked, said, strict=True) if q.kind == kind]
        told = answer_metrics([label for label, _ in rows], [text for _, text in rows])
        numbers[f"pope_{kind}_accuracy"] = told.accuracy
        numbers[f"pope_{kind}_false_yes"] = told.false_yes
    return numbers


def language_numbers(model: Any, processor: Any, test: list[Scene]) -> dict[str, float]:
    """Numbers for VILA's findings: nats per token of captions without a picture, and CHAIR_s and cover of greedy
    captions of a second picture, when the first picture and its caption are in the context."""
    import torch

    rng = stream("measure", "language")
    with torch.inference_mode():
        ids, labels = texts(processor.tokenizer, [trained_caption(scene, rng) for scene in test])
        nats = text_loss(model, ids, labels).item()
    pairs = list(zip(test[::2], test[1::2], strict=True))
    prompts = [f"{chat(PROMPTS[0])} {plain_caption(first)}{EOS}{chat(PROMPTS[0])}" for first, _ in pairs]
    inputs = processor(
        images=[draw(scene) for pair in pairs for scene in pair], text=prompts, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        out = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    said = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    second = caption_metrics([scene for _, scene in pairs], said)
    return {"text_nats": nats, "second_chair_s": second.chair_s, "second_cover": second.cover}


def gap_numbers(model: Any, processor: Any, clip: Any, tokenizer: Any, test: list[Scene]) -> dict[str, float]:
    """CLIPScore among K sampled candidates per scene: best minus worst, and how often that is enough for a pair."""
    rng = stream("measure", "gaps")
    many = [scene for scene in test for _ in range(CANDIDATES)]
    prompts = [prompt for _ in test for prompt in [rng.choice(PROMPTS)] * CANDIDATES]
    texts = answers(model, processor, many, prompts, seed=1)
    rows = [texts[start : start + CANDIDATES] for start in range(0, len(texts), CANDIDATES)]
    scores = clip_model.clip_scores(clip, tokenizer, clip_model.pixels([draw(scene) for scene in test]), rows)
    gaps = [max(row) - min(row) for row in scores]
    best = [row[score.index(max(score))] for row, score in zip(rows, scores, strict=True)]
    worst = [row[score.index(min(score))] for row, score in zip(rows, scores, strict=True)]
    return {
        "candidates_gap_p50": quantiles(gaps, n=2)[0],
        "candidates_share_gap_2": fmean(gap >= MIN_GAP for gap in gaps),
        "candidates_best_chair_s": caption_metrics(test, best).chair_s,
        "candidates_worst_chair_s": caption_metrics(test, worst).chair_s,
        "candidates_best_cover": caption_metrics(test, best).cover,
        "candidates_worst_cover": caption_metrics(test, worst).cover,
        "candidates_best_tokens": caption_metrics(test, best).mean_tokens,
        "candidates_worst_tokens": caption_metrics(test, worst).mean_tokens,
    }
