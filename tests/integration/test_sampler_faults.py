"""What goes wrong inside: a failing forward, broken weights, a stop under load. Answers with a status, and goes on."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sampler_models import PROMPT, Running, make_adapter, make_llava, png, running, seal
from sightline import InternalError, PreconditionFailed, SightlineError, Unavailable
from sightline.patience import ONCE
from sightline.sampler import AsyncSamplerClient, SamplerClient, exact, policy_dirname
from transformers import LlavaForConditionalGeneration


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def sampler(llava: Path) -> Iterator[Running]:
    with running(llava) as at:
        yield at


@pytest.mark.parametrize("at_call", [0, 3], ids=["prompt", "step"])
def test_a_failing_forward_fails_its_requests_and_no_others(
    sampler: Running, monkeypatch: pytest.MonkeyPatch, at_call: int
) -> None:
    model = sampler.service.engine._loaded.base.model  # type: ignore[union-attr]
    forward, calls = model.forward, 0

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at_call + 1:
            raise torch.OutOfMemoryError("no memory is left")
        return forward(*args, **kwargs)

    with SamplerClient(sampler.address, timeout=30) as client:
        wanted = client.sample(png(0), PROMPT, 4, seed=1, max_tokens=10).candidates
        monkeypatch.setattr(model, "forward", fail)
        with pytest.raises(InternalError, match="no memory is left"):
            client.sample(png(0), PROMPT, 4, seed=1, max_tokens=10)
        found = client.sample(png(0), PROMPT, 4, seed=1, max_tokens=10).candidates
    assert [c.token_ids.tolist() for c in found] == [c.token_ids.tolist() for c in wanted]
    assert sampler.service.engine.rows() == sampler.service.engine.waiting() == 0


def test_a_policy_that_gives_no_numbers_is_told_and_left(sampler: Running, llava: Path, tmp_path: Path) -> None:
    """Every weight is finite, and the logits are not."""
    model = LlavaForConditionalGeneration.from_pretrained(llava)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e38)
        model.model.language_model.norm.weight.mul_(1e4)
    directory = tmp_path / policy_dirname(1)
    model.save_pretrained(directory)
    seal(directory, llava, 1, "merged")
    with SamplerClient(sampler.address, timeout=30) as client:
        client.stage(directory, 1)
        with pytest.raises(InternalError, match="not finite") as error:
            client.sample(png(0), PROMPT, 4, policy=exact(1))
        assert error.value.reason == "LOGITS_NOT_FINITE"
        assert client.sample(png(0), PROMPT, 2).policy_version == 0


def test_a_retirement_waits_for_its_candidates_and_holds_nobody_up(
    sampler: Running, llava: Path, tmp_path: Path
) -> None:
    one, two = make_adapter(tmp_path, llava, 1), make_adapter(tmp_path, llava, 2)

    async def run() -> None:
        async with AsyncSamplerClient(sampler.address, timeout=60) as client:
            await client.stage(one, 1)
            long = client.stream(png(0), PROMPT, 32, max_tokens=200, temperature=100, policy=exact(1))
            candidates = aiter(long)
            await anext(candidates)
            leaving = asyncio.create_task(client.retire(1))
            await asyncio.sleep(0.05)
            assert not leaving.done()
            with pytest.raises(PreconditionFailed, match="policy 1 is not served"):
                await client.sample(png(0), PROMPT, 1, policy=exact(1))
            with pytest.raises(PreconditionFailed, match="being retired"):
                await client.activate(1)
            await client.stage(two, 2)
            assert (await client.activate(2)).version == 2
            rest = [candidate async for candidate in candidates]
            assert {candidate.policy_version for candidate in rest} == {1}
            assert len(rest) == 31
            assert (await leaving).state == "retired"

    asyncio.run(run())


def test_a_stop_lets_calls_finish_and_breaks_off_what_is_too_long(llava: Path) -> None:
    async def run(at: Running, count: int, **options: Any) -> list[Any]:
        """Stop the service when each of ten calls has had its first candidate."""
        async with AsyncSamplerClient(at.address, timeout=30, patience=ONCE) as client:
            calls = [aiter(client.stream(png(i), PROMPT, count, **options)) for i in range(10)]
            await asyncio.gather(*(anext(call) for call in calls))

            async def rest(call: Any) -> int:
                return len([candidate async for candidate in call])

            waiting = [asyncio.create_task(rest(call)) for call in calls]
            await asyncio.to_thread(at.stop)
            return await asyncio.gather(*waiting, return_exceptions=True)

    with running(llava, server={"drain_seconds": 20}) as at:
        assert asyncio.run(run(at, 8, max_tokens=12)) == [7] * 10

    with running(llava, server={"drain_seconds": 0.2}, engine={"max_rows": 16}) as at:
        outcomes = asyncio.run(run(at, 64, max_tokens=200, temperature=100))
    broken = [outcome for outcome in outcomes if not isinstance(outcome, int)]
    assert broken
    for error in broken:
        assert isinstance(error, SightlineError)
        assert isinstance(error, Unavailable) or error.code.name == "CANCELLED"
