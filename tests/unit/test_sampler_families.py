"""Every family through the sampler's engine: log-probs equal a plain forward pass of one call of its own processor."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from typing import Any

import families
import numpy as np
import pytest
from plain_model import Plain
from sampler_engine import Base, RunningEngine, running_engine
from sampler_engine import asked as conversation
from sightline.sampler.types import Candidate, TokenScores
from sightline_sampler.engines.base import ScoreWork

QUESTIONS = ("what is in the picture ?", "describe the picture .", "is there a red star ? yes or no ?")


SEVERAL = ("qwen3_vl", "gemma3")
"""Families whose positions or attention an image changes for what follows; `make test` takes several of these alone."""


def _families(quick: Collection[str]) -> list[Any]:
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in families.FAMILIES]


@pytest.fixture(scope="module", params=_families([name for name, family in families.FAMILIES.items() if family.quick]))
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Plain, RunningEngine]]:
    name = str(request.param)
    directory = families.make(tmp_path_factory.mktemp(name) / "model", name)
    template, options = families.FAMILIES[name].template, {}
    plain = Plain(directory, name, template)
    if template:
        path = directory / "template.jinja"
        path.write_text(template)
        options["chat_template"] = str(path)
    with running_engine(directory, **options) as at:
        yield plain, at


def test_log_probs_are_those_of_one_plain_call(family: tuple[Plain, RunningEngine]) -> None:
    """Mixed photos, one candidate or four, sampled and nearly greedy, several prompts at once, and given responses."""
    plain, at = family
    photos = families.photos()
    asked = [
        (
            photo,
            QUESTIONS[i % len(QUESTIONS)],
            1 if i % 2 else 4,
            {"seed": i, "temperature": 0.05 if i % 3 == 0 else 1.0},
        )
        for i, photo in enumerate(photos)
    ]

    async def together() -> list[list[Candidate]]:
        return await asyncio.gather(*(at.asked(p, q, k, max_tokens=10, **more) for p, q, k, more in asked))

    apart, matters, given = [], [], []
    for (photo, question, _, _), candidates in zip(asked, at.run(together()), strict=True):
        for candidate in candidates:
            wanted = plain.logprobs(photo, question, candidate.token_ids)
            apart.append(np.abs(candidate.logprobs - wanted))
            given.append((score_work(at, photo, question, candidate.token_ids.tolist()), wanted))
        other = photos[photos.index(photo) - 1]
        matters.append(np.abs(wanted - plain.logprobs(other, question, candidate.token_ids)).mean())

    async def scores() -> list[TokenScores]:
        return await asyncio.gather(*(at.engine.score(work) for work, _ in given))

    for scored, (_, wanted) in zip(at.run(scores()), given, strict=True):
        apart.append(np.abs(scored.logprobs - wanted))
    assert np.concatenate(apart).max() < 1e-3
    assert np.mean(matters) > 0.02, "an image that does not matter would prove nothing"


@pytest.mark.parametrize("family", _families(SEVERAL), indirect=True)
def test_several_images_and_turns_are_those_of_one_plain_call(family: tuple[Plain, RunningEngine]) -> None:
    """A system prompt, an earlier answer, two images in two turns or three in one, beside one image alone."""
    plain, at = family
    capabilities = at.engine.capabilities()
    assert (capabilities.max_images, capabilities.one_image_only) == (16, "")
    photos = list(families.photos())
    asked: list[tuple[list[bytes], list[dict[str, Any]], int]] = [
        ([photos[0], photos[2]], turns("image", "image"), 4),
        ([photos[2], photos[0]], turns("image", "image"), 1),
        ([photos[3], photos[1]], turns("image", "image"), 1),
        ([photos[4], photos[4], photos[5]], turns("image image image", ""), 2),
        ([photos[6]], turns("image", ""), 2),
    ]

    async def together() -> list[list[Candidate]]:
        given = enumerate(asked)
        return await asyncio.gather(*(at.asked(i, m, k, seed=n, max_tokens=10) for n, (i, m, k) in given))

    apart, matters = [], []
    for (images, messages, _), candidates in zip(asked, at.run(together()), strict=True):
        for candidate in candidates:
            wanted = plain.logprobs(images, messages, candidate.token_ids)
            apart.append(np.abs(candidate.logprobs - wanted))
        ids = candidates[0].token_ids
        scored = at.run(at.engine.score(ScoreWork(conversation(images, messages), ids.tolist(), Base())))
        apart.append(np.abs(scored.logprobs - plain.logprobs(images, messages, ids)))
        swapped = plain.logprobs([*images[1:], photos[7]], messages, ids)
        matters.append(np.abs(scored.logprobs - swapped).mean())
    assert np.concatenate(apart).max() < 1e-3
    assert np.mean(matters) > 0.01


def turns(first: str, second: str) -> list[dict[str, Any]]:
    """A system prompt, a question and its answer, and another question; each with this many images."""

    def content(images: str, text: str) -> list[dict[str, str]]:
        return [*({"type": kind} for kind in images.split()), {"type": "text", "text": text}]

    return [
        {"role": "system", "content": content("", "answer in blue .")},
        {"role": "user", "content": content(first, "what is in the picture ?")},
        {"role": "assistant", "content": content("", "a red star .")},
        {"role": "user", "content": content(second, "is there one of two ?")},
    ]


def score_work(at: RunningEngine, photo: bytes, question: str, ids: list[int]) -> ScoreWork:
    return ScoreWork(at.work(photo, question, 1).asked, ids, Base())
