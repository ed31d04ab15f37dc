"""Candidates: their log-probs are those of teacher forcing, and they depend on their seed alone."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sampler_models import PROMPT, Running, make_llava, png, running
from sightline.sampler import AsyncSamplerClient, Candidate, SamplerClient, Samples
from transformers import AutoModelForImageTextToText, AutoProcessor

LONG = "what is in this picture ? one or two red star and blue circle"


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def sampler(llava: Path) -> Iterator[Running]:
    with running(llava, engine={"max_rows": 64}) as at:
        yield at


@pytest.fixture(scope="module")
def client(sampler: Running) -> Iterator[SamplerClient]:
    with SamplerClient(sampler.address, timeout=60) as client:
        yield client


class Plain:
    """The model in transformers, called as its documentation says."""

    def __init__(self, directory: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(directory).eval()
        self.processor = AutoProcessor.from_pretrained(directory)

    @torch.no_grad()
    def logits(self, image: bytes | None, prompt: str, token_ids: Any) -> torch.Tensor:
        """Logits that predict each of the response's tokens (n, vocabulary), from one forward."""
        import io

        content = [{"type": "image"}] * (image is not None) + [{"type": "text", "text": prompt}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        images = None if image is None else [Image.open(io.BytesIO(image)).convert("RGB")]
        batch = self.processor(images=images, text=[text], return_tensors="pt")
        length = batch["input_ids"].shape[1]
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([list(token_ids)])], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        return self.model(**batch).logits[0, length - 1 : -1]

    def logprobs(self, image: bytes | None, prompt: str, token_ids: Any) -> np.ndarray:
        scores = torch.log_softmax(self.logits(image, prompt, token_ids).double(), dim=-1)
        return scores.gather(1, torch.tensor([list(token_ids)]).T)[:, 0].numpy()


@pytest.fixture(scope="module")
def plain(llava: Path) -> Plain:
    return Plain(llava)


def ids(candidate: Candidate) -> list[int]:
    return candidate.token_ids.tolist()


@pytest.mark.parametrize("image", [None, png(0)], ids=["text only", "image"])
@pytest.mark.parametrize("count", [1, 8])
def test_log_probs_are_those_of_teacher_forcing(
    client: SamplerClient, plain: Plain, image: bytes | None, count: int
) -> None:
    samples = client.sample(image, PROMPT, count, seed=3, max_tokens=24)
    assert [candidate.index for candidate in samples.candidates] == list(range(count))
    assert samples.prompt_tokens == (24 if image else 8)
    assert samples.rendered_prompt == f"user : {'<image> ' * bool(image)}{PROMPT} assistant :"
    for candidate in samples.candidates:
        wanted = plain.logprobs(image, PROMPT, candidate.token_ids)
        np.testing.assert_allclose(candidate.logprobs, wanted, atol=1e-4)
        scored = client.score_tokens(image, PROMPT, candidate.token_ids)
        np.testing.assert_allclose(scored.logprobs, wanted, atol=1e-4)
        ended = candidate.token_ids[-1] == 2
        assert candidate.finish_reason == ("eos" if ended else "length")
        assert 2 not in candidate.token_ids[:-1]
        assert ended or len(candidate.token_ids) == 24
        assert candidate.text == plain.processor.tokenizer.decode(ids(candidate), skip_special_tokens=True)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.7, 0.8, 0), (1.5, 1.0, 5), (2.0, 0.6, 9)]
)
def test_behaviour_log_probs_are_after_suppression_temperature_and_truncation(
    client: SamplerClient, plain: Plain, temperature: float, top_p: float, top_k: int
) -> None:
    samples = client.sample(png(1), PROMPT, 4, seed=5, temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=12)
    suppressed = [0, 1, 3, *range(len(plain.processor.tokenizer), plain.model.config.text_config.vocab_size)]
    for candidate in samples.candidates:
        logits = plain.logits(png(1), PROMPT, candidate.token_ids).double()
        logits[:, suppressed] = -torch.inf
        for row, token, found in zip(logits, ids(candidate), candidate.behaviour_logprobs, strict=True):
            p = torch.softmax(row / temperature, dim=-1)
            order = sorted(range(len(p)), key=lambda i: -float(p[i]))
            order = order[: top_k or None]
            mass, kept = sum(float(p[i]) for i in order), []
            for i in order:
                if sum(float(p[j]) for j in kept) < top_p * mass or top_p == 1:
                    kept.append(i)
            wanted = np.log(float(p[token]) / sum(float(p[j]) for j in kept))
            assert found == pytest.approx(wanted, abs=1e-4)
            assert token not in suppressed


def test_greedy_takes_the_likeliest_token(client: SamplerClient, plain: Plain) -> None:
    one, two = client.sample(png(2), PROMPT, 2, temperature=0, max_tokens=16).candidates
    assert ids(one) == ids(two)
    logits = plain.logits(png(2), PROMPT, one.token_ids)
    logits[:, [0, 1, 3]] = -torch.inf
    assert logits[:, : len(plain.processor.tokenizer)].argmax(dim=-1).tolist() == ids(one)
    assert one.behaviour_logprobs is not None
    assert one.behaviour_logprobs.tolist() == [0.0] * len(one.token_ids)


def test_a_seed_gives_the_same_candidate_whatever_k_order_and_length(client: SamplerClient) -> None:
    together = client.sample(png(3), PROMPT, 8, seed=11, max_tokens=30).candidates
    seeds = [candidate.seed for candidate in together]
    assert len(set(seeds)) == 8
    backwards = client.sample(png(3), PROMPT, 8, seeds=seeds[::-1], max_tokens=30).candidates
    fewer = client.sample(png(3), PROMPT, 3, seed=11, max_tokens=30).candidates
    for a, b in [*zip(together, backwards[::-1], strict=True), *zip(together[:3], fewer, strict=True)]:
        assert (ids(a), a.seed) == (ids(b), b.seed)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
    for candidate in together:
        (alone,) = client.sample(png(3), PROMPT, 1, seeds=[candidate.seed], max_tokens=30).candidates
        (shorter,) = client.sample(png(3), PROMPT, 1, seeds=[candidate.seed], max_tokens=4).candidates
        assert ids(alone) == ids(candidate)
        assert ids(shorter) == ids(candidate)[:4]
        np.testing.assert_allclose(alone.logprobs, candidate.logprobs, atol=1e-4)


def test_hundreds_of_candidates_are_the_same_alone_and_in_mixed_batches(
    sampler: Running, client: SamplerClient
) -> None:
    """40 prompts on 10 images, of two lengths, with other K, temperature and length, all at once, in two orders; then
    each seed again, one at a time. The rows are more than fit (64), so they also wait, join and leave mid-way."""
    works = [
        {
            "image": png(100 + i % 10) if i % 5 else None,
            "prompt": (PROMPT, LONG)[i % 2],
            "n": (8, 12, 1, 5)[i % 4],
            "seed": i,
            "temperature": (1.0, 0.8)[i % 2],
            "top_p": (1.0, 0.9, 1.0)[i % 3],
            "max_tokens": (40, 7, 25)[i % 3],
        }
        for i in range(40)
    ]

    async def all_at_once(order: list[int]) -> dict[int, Samples]:
        async with AsyncSamplerClient(sampler.address) as client:
            found = await asyncio.gather(*(client.sample(**works[i]) for i in order))
            return dict(zip(order, found, strict=True))

    first = asyncio.run(all_at_once(list(range(40))))
    second = asyncio.run(all_at_once(list(range(39, -1, -2)) + list(range(0, 40, 2))))
    compared = 0
    for i, work in enumerate(works):
        for a, b in zip(first[i].candidates, second[i].candidates, strict=True):
            assert ids(a) == ids(b)
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
        for a in first[i].candidates[::7]:
            (alone,) = client.sample(**{**work, "n": 1, "seeds": [a.seed]}).candidates
            assert ids(a) == ids(alone)
            np.testing.assert_allclose(a.logprobs, alone.logprobs, atol=1e-4)
        compared += len(first[i].candidates)
    assert compared >= 250
    texts = {(i, tuple(ids(c))) for i, samples in first.items() for c in samples.candidates}
    assert len(texts) > compared / 2, "the model of this test repeats itself: nothing is shown"


def test_more_candidates_than_rows_are_sampled_in_turns(client: SamplerClient, llava: Path) -> None:
    wanted = client.sample(png(4), PROMPT, 30, seed=1, max_tokens=10).candidates
    with running(llava, engine={"max_rows": 8}) as small, SamplerClient(small.address) as other:
        found = other.sample(png(4), PROMPT, 30, seed=1, max_tokens=10).candidates
    assert [ids(c) for c in found] == [ids(c) for c in wanted]


def test_candidates_stream_as_they_finish(client: SamplerClient) -> None:
    with client.stream(png(5), PROMPT, 16, seed=2, max_tokens=64) as stream:
        lengths = [len(candidate.token_ids) for candidate in stream]
        assert stream.summary is not None
    assert len(lengths) == 16
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_an_image_is_encoded_once_and_may_be_named_by_its_digest(sampler: Running, client: SamplerClient) -> None:
    import hashlib

    import grpc
    from sightline.sampler.v1 import sampler_pb2 as pb
    from sightline.sampler.v1.sampler_pb2_grpc import SamplerServiceStub

    image = png(6)
    features = sampler.service.engine._loaded.prefiller.features  # type: ignore[union-attr]
    before = features.misses
    wanted = client.sample(image, PROMPT, 8, seed=9, max_tokens=8)
    client.sample(image, LONG, 8, seed=9, max_tokens=8)
    assert features.misses == before + 1
    with grpc.insecure_channel(sampler.address) as channel:
        request = pb.SampleRequest(
            image=pb.Image(sha256=hashlib.sha256(image).digest()), prompt=PROMPT, num_candidates=8, seed=9
        )
        request.params.max_tokens = 8
        found = [r.candidate for r in SamplerServiceStub(channel).Sample(request) if r.HasField("candidate")]
    assert sorted(list(c.token_ids) for c in found) == sorted(ids(c) for c in wanted.candidates)


def test_the_playgrounds_model_gives_the_same_captions_at_any_k(tmp_path: Path) -> None:
    """A trained model is sure of most tokens and undecided at some, as real ones are."""
    import io

    from running import WEIGHTS
    from sightline_playground.drawing import draw
    from sightline_playground.scenes import scenes

    pictures = []
    for scene in scenes("validation", 24, seed=5):
        out = io.BytesIO()
        draw(scene).save(out, "PNG")
        pictures.append(out.getvalue())
    plain = Plain(WEIGHTS / "llava")

    async def captions(address: str, count: int) -> list[Samples]:
        async with AsyncSamplerClient(address) as client:
            asked = (client.sample(p, "describe the picture .", count, seed=i) for i, p in enumerate(pictures))
            return await asyncio.gather(*asked)

    with running(WEIGHTS / "llava") as at:
        many, few = asyncio.run(captions(at.address, 8)), asyncio.run(captions(at.address, 2))
    for picture, a, b in zip(pictures, many, few, strict=True):
        assert [ids(c) for c in a.candidates[:2]] == [ids(c) for c in b.candidates]
        for candidate in a.candidates[:2]:
            assert candidate.finish_reason == "eos"
            wanted = plain.logprobs(picture, "describe the picture .", candidate.token_ids)
            np.testing.assert_allclose(candidate.logprobs, wanted, atol=1e-4)
    assert len({candidate.text for samples in many for candidate in samples.candidates}) > 100


def test_a_small_cache_makes_candidates_wait_and_changes_none(
    client: SamplerClient, sampler: Running, llava: Path
) -> None:
    """1 MiB holds keys and values of about 20 rows of this model."""
    wanted = client.sample(png(4), PROMPT, 32, seed=1, max_tokens=60).candidates
    with running(llava, engine={"cache_mib": 1}) as small:

        async def ask() -> list[Samples]:
            async with AsyncSamplerClient(small.address) as other:
                return await asyncio.gather(
                    *(other.sample(png(i), PROMPT, 32, seed=1, max_tokens=60) for i in (4, 5, 6))
                )

        found = asyncio.run(ask())[0].candidates
    assert [ids(c) for c in found] == [ids(c) for c in wanted]
