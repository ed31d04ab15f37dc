"""Penalties, stops, beams, distorted images and guidance in the engine: against a plain loop with transformers' own
processors, and independent of the batch."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sampler_engine import RunningEngine, ids, running_engine
from sampler_models import PROMPT, make_llava, png
from sightline.errors import InvalidInput
from sightline.sampler.params import SamplingParams
from sightline.sampler.types import (
    Beams,
    Blank,
    Blur,
    Candidate,
    Contrast,
    Crop,
    DiffusionNoise,
    Distortion,
    ImageFree,
    PixelNoise,
    Prompted,
)
from sightline_chassis.families.processing import PixelLayout
from sightline_sampler.engines import seeds
from sightline_sampler.engines.local import distort, kv
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

IMAGE = png(0)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"min_p": 0.2, "temperature": 1.5},
    {"repetition_penalty": 1.6},
    {"repetition_penalty": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.05, "temperature": 0.8},
    {"distortion": DiffusionNoise(700, 3)},
    {"distortion": PixelNoise(500, 3, official=True)},
    {"distortion": Blur(3.0)},
    {"distortion": Crop(seed=4)},
    {"distortion": Blank()},
    {"guidance": Contrast(DiffusionNoise(900, 1), alpha=1.0, beta=0.1)},
    {"guidance": ImageFree(2.0)},
    {"guidance": ImageFree(3.0, None, 0.3)},
    {"guidance": Prompted("is there a red star ?", 0.7)},
    {"guidance": ImageFree(0.5, Blank()), "temperature": 0.7, "top_p": 0.95},
    {"guidance": Contrast(Blank(), 0.5, 0.3), "repetition_penalty": 1.2, "distortion": Blur(1.0)},
]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module", params=["copied prompts", "shared prompts"])
def at(llava: Path, request: pytest.FixtureRequest) -> Iterator[RunningEngine]:
    """Prompts of this model have 24 tokens: they are copied to each row, or shared if that is enough to be shared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv, "STEM_SLOTS", 16 if request.param == "shared prompts" else 128)
        with running_engine(llava, max_rows=64) as at:
            yield at


class Plain:
    """The model in transformers: a whole forward for each token of each candidate alone."""

    def __init__(self, directory: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(directory).eval()
        self.processor = AutoProcessor.from_pretrained(directory)
        self.never = [0, 1, 3, *range(len(self.processor.tokenizer), self.model.config.text_config.vocab_size)]

    def inputs(
        self, image: bytes | None, distortion: Distortion | None, prompt: str = PROMPT
    ) -> dict[str, torch.Tensor]:
        content = [{"type": "image"}] * (image is not None) + [{"type": "text", "text": prompt}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        if image is None:
            return dict(self.processor(text=[text], return_tensors="pt"))
        picture = distort.before(Image.open(io.BytesIO(image)).convert("RGB"), distortion)
        batch = dict(self.processor(images=[picture], text=[text], return_tensors="pt"))
        return distort.after(batch, distortion, {"pixel_values": PixelLayout()})

    @torch.no_grad()
    def logits(self, inputs: dict[str, torch.Tensor], said: list[int]) -> torch.Tensor:
        """Of the next token, (1, vocabulary) float64."""
        ids = torch.cat([inputs["input_ids"], torch.tensor([said], dtype=torch.long)], dim=1)
        batch = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self.model(**batch, use_cache=False).logits[:, -1].double()

    def sample(self, seed: int, limit: int, params: SamplingParams) -> tuple[list[int], list[float], list[float]]:
        """Ids, and log-probabilities of policy and behaviour."""
        prompt = self.inputs(IMAGE, params.distortion)
        said: list[int] = []
        policy: list[float] = []
        behaviour: list[float] = []
        for uniform in seeds.uniforms([seed], limit)[0]:
            z = self.logits(prompt, said)
            processed = self.guided(z, said, params)
            so_far = torch.cat([prompt["input_ids"], torch.tensor([said], dtype=torch.long)], dim=1)
            if params.repetition_penalty != 1:
                processed = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(so_far, processed)
            processed[:, self.never] = -torch.inf
            processed = TemperatureLogitsWarper(params.temperature)(so_far, processed)
            if params.top_k:
                processed = TopKLogitsWarper(params.top_k)(so_far, processed)
            if params.top_p < 1:
                processed = TopPLogitsWarper(params.top_p)(so_far, processed)
            if params.min_p:
                processed = MinPLogitsWarper(params.min_p)(so_far, processed)
            q = torch.softmax(processed, dim=-1)[0]
            token = int(torch.searchsorted(q.cumsum(0), float(uniform), right=True))
            policy.append(float(torch.log_softmax(z, dim=-1)[0, token]))
            behaviour.append(float(q[token].log()))
            said.append(token)
            if token == 2:
                break
        return said, policy, behaviour

    def guided(self, z: torch.Tensor, said: list[int], params: SamplingParams) -> torch.Tensor:
        """VCD's published code, and MARINE's formula."""
        match params.guidance:
            case Contrast(shown, alpha, beta):
                other = self.logits(self.inputs(IMAGE, shown), said)
                possible = z.clone()
                possible[:, self.never] = -torch.inf
                cut = np.log(beta) + possible.max(dim=-1, keepdim=True).values
                return ((1 + alpha) * z - alpha * other).masked_fill(z < cut, -torch.inf)
            case ImageFree(gamma, shown, beta):
                other = self.logits(self.inputs(None if shown is None else IMAGE, shown), said)
                possible = z.clone()
                possible[:, self.never] = -torch.inf
                cut = np.log(beta) + possible.max(dim=-1, keepdim=True).values if beta else -torch.inf
                return (gamma * (z - other) + other).masked_fill(z < cut, -torch.inf)
            case Prompted(prompt, gamma):
                other = self.logits(self.inputs(IMAGE, params.distortion, prompt), said)
                return gamma * (other - z) + z
        return z.clone()


@pytest.fixture(scope="module")
def plain(llava: Path) -> Plain:
    return Plain(llava)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "none")
def test_candidates_are_those_of_a_plain_loop(at: RunningEngine, plain: Plain, options: dict[str, Any]) -> None:
    for candidate in at.sample(IMAGE, PROMPT, 4, seed=5, max_tokens=10, **options):
        said, policy, behaviour = plain.sample(candidate.seed, 10, SamplingParams(**options))
        assert ids(candidate) == said
        np.testing.assert_allclose(candidate.logprobs, policy, atol=1e-4)
        np.testing.assert_allclose(candidate.behaviour_logprobs, behaviour, atol=1e-3)


def test_the_options_change_what_is_said(at: RunningEngine) -> None:
    said = {tuple(tuple(ids(c)) for c in at.sample(IMAGE, PROMPT, 8, seed=5, max_tokens=10, **o)) for o in OPTIONS}
    assert len(said) == len(OPTIONS)


def test_a_response_goes_on_behind_what_is_given(at: RunningEngine, plain: Plain) -> None:
    """Greedily, from anywhere, and under guidance: what a whole response says from there on, with its log-probs."""
    for options in ({}, {"guidance": ImageFree(2.0)}, {"guidance": Prompted("is there a red star ?", 0.7)}):
        (whole,) = at.sample(IMAGE, PROMPT, 1, temperature=0.0, max_tokens=10, **options)
        for cut in (1, 4):
            given, rest = ids(whole)[:cut], ids(whole)[cut:]
            found = at.sample(
                IMAGE, PROMPT, 2, temperature=0.0, max_tokens=10 - cut, continue_from=tuple(given), **options
            )
            for candidate in found:
                assert ids(candidate) == rest
                np.testing.assert_allclose(candidate.logprobs, whole.logprobs[cut:], atol=1e-4)
                assert candidate.text == whole.text
    with pytest.raises(InvalidInput, match=r"continue_from\[1\] = 3"):
        at.sample(IMAGE, PROMPT, 1, max_tokens=2, continue_from=(5, 3))
    with pytest.raises(InvalidInput, match="window"):
        at.sample(IMAGE, PROMPT, 1, max_tokens=20, continue_from=(5,) * 230)


def test_a_noise_seed_is_part_of_the_request(at: RunningEngine) -> None:
    def said(seed: int) -> list[list[int]]:
        noise = DiffusionNoise(900, seed)
        return [ids(c) for c in at.sample(IMAGE, PROMPT, 8, seed=5, max_tokens=10, distortion=noise)]

    assert said(1) == said(1)
    assert said(1) != said(2)


def test_all_options_at_once_in_one_batch_change_no_candidate(at: RunningEngine) -> None:
    """Each option with its own K, twice in other orders, beside plain requests; then each seed alone."""
    works = [{"n": (4, 1, 7)[i % 3], "seed": i, "max_tokens": (20, 6, 13)[i % 3], **o} for i, o in enumerate(OPTIONS)]
    works += [
        {"n": 4, "beams": Beams(4, 3.0), "max_tokens": 9},
        {"n": 6, "beams": Beams(2), "guidance": Contrast(), "max_tokens": 12},
        {"n": 5, "seed": 99, "stop": ("red", "a"), "max_tokens": 20},
    ]

    async def all_at_once(order: list[int]) -> dict[int, list[Candidate]]:
        found = await asyncio.gather(*(at.asked(IMAGE, PROMPT, **works[i]) for i in order))
        return dict(zip(order, found, strict=True))

    first = at.run(all_at_once(list(range(len(works)))))
    second = at.run(all_at_once(list(range(len(works)))[::-1]))
    for i, work in enumerate(works):
        assert [ids(c) for c in first[i]] == [ids(c) for c in second[i]], work
        alone = (
            at.sample(IMAGE, PROMPT, **work)
            if "beams" in work
            else [at.sample(IMAGE, PROMPT, **{**work, "n": 1, "seeds": [c.seed]})[0] for c in first[i]]
        )
        assert [ids(c) for c in alone] == [ids(c) for c in first[i]], work
        for a, b in zip(alone, first[i], strict=True):
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
            np.testing.assert_allclose(a.behaviour_logprobs, b.behaviour_logprobs, atol=1e-5)
    assert max(at.steps) > 40
    assert at.engine.rows() == 0


def test_a_stop_string_ends_the_text_before_it_and_keeps_the_ids(at: RunningEngine) -> None:
    free = at.sample(IMAGE, PROMPT, 16, seed=3, max_tokens=30)
    held = at.sample(IMAGE, PROMPT, 16, seed=3, max_tokens=30, stop=("two", "blue star"))
    reasons = set()
    for one, other in zip(free, held, strict=True):
        reasons.add(other.finish_reason)
        places = [p for p in (one.text.find("two"), one.text.find("blue star")) if p >= 0]
        if not places:
            assert (ids(other), other.text, other.finish_reason) == (ids(one), one.text, one.finish_reason)
            continue
        assert other.finish_reason == "stop"
        assert other.text == one.text[: min(places)]
        assert ids(one)[: len(other.token_ids)] == ids(other)
        assert len(other.logprobs) == len(other.token_ids)
    assert "stop" in reasons
    assert reasons - {"stop"}


def test_beams_are_the_likeliest_that_differ(at: RunningEngine, plain: Plain) -> None:
    """CSR's way: as many groups as beams. The first group is greedy; sums are those of teacher forcing."""
    beams = at.sample(IMAGE, PROMPT, 5, beams=Beams(5, 3.0), max_tokens=8)
    (greedy,) = at.sample(IMAGE, PROMPT, 1, temperature=0.0, max_tokens=8)
    assert ids(greedy) in [ids(c) for c in beams]
    assert len({ids(c)[0] for c in beams}) == 5, "a diversity penalty of 3 makes the first tokens differ"
    prompt = plain.inputs(IMAGE, None)
    for candidate in beams:
        said = ids(candidate)
        wanted = [
            float(torch.log_softmax(plain.logits(prompt, said[:i]), dim=-1)[0, token]) for i, token in enumerate(said)
        ]
        np.testing.assert_allclose(candidate.logprobs, wanted, atol=1e-4)
        assert candidate.behaviour_logprobs is not None
        assert not candidate.behaviour_logprobs.any()
    ended = at.sample(IMAGE, PROMPT, 4, beams=Beams(4, 3.0), max_tokens=30, stop=(" ",))
    assert {c.finish_reason for c in ended} <= {"stop", "eos"}


def test_pairs_and_beams_wait_for_room_and_change_nothing(at: RunningEngine, llava: Path) -> None:
    works: list[dict[str, Any]] = [
        {"n": 7, "seed": 1, "guidance": Contrast(), "max_tokens": 9},
        {"n": 6, "beams": Beams(3), "max_tokens": 6},
        {"n": 9, "seed": 2, "max_tokens": 12},
        {"n": 2, "beams": Beams(1), "guidance": ImageFree(), "max_tokens": 5},
        {"n": 3, "seed": 4, "guidance": ImageFree(3.0), "max_tokens": 12},
    ]
    wanted = [at.sample(IMAGE, PROMPT, **work) for work in works]
    for settings in ({"max_rows": 5}, {"max_rows": 1}, {"cache_mib": 1}):
        with running_engine(llava, **settings) as small:

            async def ask(small: RunningEngine = small) -> list[list[Candidate]]:
                return await asyncio.gather(*(small.asked(IMAGE, PROMPT, **work) for work in works))

            found = small.run(ask())
            assert [[ids(c) for c in a] for a in found] == [[ids(c) for c in b] for b in wanted]
            assert small.engine.rows() == 0


@pytest.mark.parametrize(
    "options", [{}, {"guidance": Contrast()}, {"beams": Beams(2)}], ids=["plain", "pairs", "beams"]
)
def test_a_caller_that_leaves_frees_its_rows_at_once(at: RunningEngine, options: dict[str, Any]) -> None:
    async def leave() -> int:
        work = at.work(IMAGE, PROMPT, 4, max_tokens=200, **options)
        events = at.engine.sample(work)
        waiting = asyncio.ensure_future(anext(events))
        while not at.engine.rows():
            await asyncio.sleep(0.001)
        begun = len(at.steps)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await events.aclose()
        while at.engine.rows():
            await asyncio.sleep(0.001)
        return len(at.steps) - begun

    assert at.run(leave()) < 60, "far from the 200 tokens that were asked for"
    assert at.engine.waiting() == 0


def test_features_are_kept_for_each_way_of_showing_an_image(llava: Path) -> None:
    with running_engine(llava) as at:
        features = at.engine._loaded.prefiller.features  # type: ignore[union-attr]
        before = features.misses
        for seed in (1, 2):
            at.sample(IMAGE, PROMPT, 2, seed=seed, guidance=Contrast(), max_tokens=2)
            at.sample(IMAGE, PROMPT, 2, seed=seed, distortion=DiffusionNoise(500), max_tokens=2)
            at.sample(IMAGE, PROMPT, 2, seed=seed, guidance=ImageFree(), max_tokens=2)
            at.sample(IMAGE, PROMPT, 2, seed=seed, distortion=Blur(1.0), max_tokens=2)
        assert features.misses == before + 3


def test_a_reference_prompt_counts_for_the_window(at: RunningEngine) -> None:
    with pytest.raises(InvalidInput, match="window"):
        at.sample(IMAGE, "red " * 230, 1, guidance=ImageFree(), max_tokens=20)
