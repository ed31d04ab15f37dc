"""Families of models run by the same engine behind the service: distortions, guidance, beams and the window."""

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
from plain_model import Plain
from sampler_models import PROMPT, png, running
from sightline import InvalidInput
from sightline.sampler import Beams, Blank, Contrast, DiffusionNoise, ImageFree, SamplerClient

FAMILIES = ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "idefics3", "smolvlm"]
MORE = ["llava_onevision", "qwen3_vl", "qwen3_5", "internvl", "gemma3", "gemma4", "glm46v"]


@pytest.mark.parametrize("name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_candidates_are_those_of_the_plain_model(name: str, tmp_path: Path) -> None:
    plain = Plain(families.make(tmp_path, name), name)
    with running(tmp_path) as at, SamplerClient(at.address, timeout=60) as client:
        loaded = at.service.engine._loaded
        assert loaded is not None
        assert loaded.prefiller.sharing is not None
        for size in (40, 70, (90, 50)):  # other numbers of image tokens
            image = png(3, size)
            samples = client.sample(image, PROMPT, 4, seed=1, max_tokens=12)
            for candidate in samples.candidates:
                wanted = plain.logprobs(image, PROMPT, candidate.token_ids)
                np.testing.assert_allclose(candidate.logprobs, wanted, atol=1e-4)
                (alone,) = client.sample(image, PROMPT, 1, seeds=[candidate.seed], max_tokens=12).candidates
                assert alone.token_ids.tolist() == candidate.token_ids.tolist()
                scored = client.score_tokens(image, PROMPT, candidate.token_ids)
                np.testing.assert_allclose(scored.logprobs, wanted, atol=1e-4)
        text = plain.call(plain.rendered(PROMPT, image=False), None)
        assert client.sample(None, PROMPT, 2, max_tokens=4).prompt_tokens == text["input_ids"].shape[1]
        processed(client, plain)
        window(client, plain.processor, loaded.base.window)


def processed(client: SamplerClient, plain: Plain) -> None:
    """A distorted image is another image, and policy log-probs of guided candidates are those of the clean one."""
    image = png(3, 70)
    clean = client.sample(image, PROMPT, 4, seed=1, max_tokens=12).candidates
    for options in ({"distortion": DiffusionNoise(900)}, {"distortion": Blank()}, {"guidance": ImageFree(3.0)}):
        found = client.sample(image, PROMPT, 4, seed=1, max_tokens=12, **options).candidates
        assert [c.token_ids.tolist() for c in found] != [c.token_ids.tolist() for c in clean]
    samples = client.sample(image, PROMPT, 2, seed=1, max_tokens=8, guidance=Contrast(alpha=2.0))
    beams = client.sample(image, PROMPT, 4, max_tokens=8, beams=Beams(2))
    for candidate in (*samples.candidates, *beams.candidates):
        wanted = plain.logprobs(image, PROMPT, candidate.token_ids)
        np.testing.assert_allclose(candidate.logprobs, wanted, atol=1e-4)


def window(client: SamplerClient, processor: Any, size: int) -> None:
    """A prompt over the window is refused, whole: no image token is cut. Up to the window it is served."""
    image = png(3, 40)
    words = size - client.sample(image, "red", 1, max_tokens=1).prompt_tokens  # one more of them is to be sampled
    full = client.sample(image, "red " * words, 1, max_tokens=1)
    assert full.prompt_tokens == size - 1
    with pytest.raises(InvalidInput, match="window") as caught:
        client.sample(image, "red " * (words + 1), 1, max_tokens=1)
    assert caught.value.reason == "PROMPT_TOO_LONG"
    with pytest.raises(InvalidInput) as caught:
        client.sample(image, f"what is {processor.image_token} ?", 1)
    assert caught.value.reason == "PROMPT_HAS_PLACEHOLDER", "a second image cannot be smuggled in"
