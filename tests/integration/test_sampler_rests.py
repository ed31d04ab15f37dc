"""A sampler that releases its memory while somebody else needs it, and reloads it: its log-probs stay the same."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sampler_models import PROMPT, Running, make_adapter, make_full, make_llava, png, running
from sightline.errors import InvalidInput, PreconditionFailed
from sightline.sampler import Exact, SamplerClient

IDS = [7, 9, 11, 8]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, SamplerClient, Path]]:
    root = tmp_path_factory.mktemp("rests")
    base = make_llava(root / "base")
    with running(base) as at, SamplerClient(at.address, timeout=60) as client:
        client.stage(make_adapter(root / "lora", base, 1), 1)
        client.stage(make_full(root / "full", base, 2), 2)
        client.activate(1)
        yield at, client, root


def said(client: SamplerClient) -> list[list[float]]:
    return [client.score_tokens(png(1), PROMPT, IDS, policy=Exact(version)).logprobs.tolist() for version in (0, 1, 2)]


def test_weights_go_and_come_back(served: tuple[Running, SamplerClient, Path]) -> None:
    at, client, root = served
    before = said(client)
    drawn = client.sample(png(2), PROMPT, 3, seed=5, max_tokens=6)
    assert len({tuple(each) for each in before}) == 3
    client.pause(release=True)
    base = at.service.engine._loaded.base.model
    large = [name for name, each in base.named_parameters() if each.numel() > 1 << 10]
    assert not large
    with pytest.raises(PreconditionFailed, match="Resume first"):
        client.activate(0)
    with pytest.raises(PreconditionFailed, match="Resume first"):
        client.stage(make_adapter(root / "third", root / "base", 3), 3)
    client.pause(release=True)  # again: nothing more happens
    client.resume()
    client.resume()
    assert said(client) == before
    again = client.sample(png(2), PROMPT, 3, seed=5, max_tokens=6)
    assert [one.token_ids.tolist() for one in again.candidates] == [one.token_ids.tolist() for one in drawn.candidates]
    client.activate(0)
    client.activate(1)


def test_keep_and_release_do_not_go_together(served: tuple[Running, SamplerClient, Path]) -> None:
    _, client, _ = served
    with pytest.raises(InvalidInput, match="keep"):
        client.pause("keep", release=True)
    assert client.sample(png(2), PROMPT, 2, max_tokens=3).candidates


def resident() -> int:
    """This process' share of the used memory, mapped files included, because weights may be mapped from files."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise AssertionError


@pytest.mark.slow
def test_the_memory_is_there_for_others(tmp_path: Path) -> None:
    from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

    small = make_llava(tmp_path / "small")
    config: Any = LlavaConfig.from_pretrained(small)
    config.text_config.hidden_size, config.text_config.intermediate_size = 1024, 4096
    config.text_config.num_hidden_layers = 6
    model = LlavaForConditionalGeneration(config)
    size = 4 * sum(each.numel() for each in model.parameters())
    model.save_pretrained(tmp_path / "large")
    AutoProcessor.from_pretrained(small).save_pretrained(tmp_path / "large")
    del model
    with running(tmp_path / "large") as at, SamplerClient(at.address, timeout=120) as client:
        before = client.score_tokens(png(1), PROMPT, IDS).logprobs.tolist()
        gc.collect()
        taken = resident()
        client.pause(release=True)
        left = resident()
        assert taken - left > 0.9 * size, (taken, left, size)
        client.resume()
        assert client.score_tokens(png(1), PROMPT, IDS).logprobs.tolist() == before
