"""The reward function for TRL, inside TRL's own trainers and with their call convention."""

import asyncio
import itertools
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import WEIGHTS
from scorer_scripted import Scripted, scripted
from sightline.errors import InvalidInput, SightlineError
from sightline.integrations.trl import ClipReward

PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 48, 3), dtype=np.uint8)) for seed in range(4)
]


@pytest.fixture
def there() -> Iterator[tuple[Scripted, str]]:
    with scripted() as found:
        yield found


class Seen(ClipReward):
    """Records its calls."""

    calls: list[tuple[dict[str, Any], list[float | None]]]

    def __call__(self, *args: Any, **columns: Any) -> list[float | None]:
        assert not args, "TRL calls by keyword"
        rewards = super().__call__(**columns)
        self.calls.append((columns, rewards))
        return rewards


def dataset(column: str = "image") -> Any:
    from datasets import Dataset

    prompt = [{"role": "user", "content": "Describe the image."}]
    return Dataset.from_list(
        [{"prompt": prompt, column: [picture] if column == "images" else picture} for picture in PICTURES]
    )


def train(kind: str, reward: Any, directory: Path, column: str = "image") -> dict[str, float]:
    """Run one step of a TRL trainer with the playground's LVLM; return the step's log."""
    import torch
    import trl
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(1)
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(WEIGHTS / "llava")
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS / "llava")
    common: dict[str, Any] = {
        "output_dir": str(directory),
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "no",
    }
    common["generation_kwargs"] = {"suppress_tokens": [model.config.image_token_id]}
    config = getattr(trl, f"{kind}Config")(num_generations=4, max_completion_length=12, **common)
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=dataset(column),
        processing_class=processor,
    )
    trainer.train()
    log: dict[str, float] = trainer.state.log_history[0]
    return log


@pytest.mark.parametrize(("kind", "column"), [("GRPO", "image"), ("GRPO", "images"), ("RLOO", "image")])
def test_a_step_of_trls_own_trainer(there: tuple[Scripted, str], tmp_path: Path, kind: str, column: str) -> None:
    reward = Seen(there[1], kind="cosine")
    reward.calls = []
    turn = itertools.count()
    there[0].refused = lambda text: next(turn) % 4 == 3  # one of each group of four fails
    log = train(kind, reward, tmp_path, column)
    ((columns, rewards),) = reward.calls
    assert columns["completions"][0][0]["role"] == "assistant"
    assert len(rewards) == len(columns["completions"]) == 4
    assert [value for value in rewards if value is not None] == [1.0] * 3
    assert rewards.count(None) == 1
    assert log["rewards/clip_reward/mean"] == 1.0  # the failure is left out and does not become 0
    assert log["clip_reward/failed"] == 0.25
    assert math.isfinite(log["loss"])
    assert there[0].seen["content"] + there[0].seen["sha256"] == 4


def test_a_step_of_online_dpo_gets_an_error_in_place_of_a_silent_zero(
    there: tuple[Scripted, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This trainer sums rewards with `nansum`: a None would count as 0."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    reward = Seen(there[1], on_failure="raise")
    reward.calls = []
    trainer = OnlineDPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(WEIGHTS / "llava"),
        reward_funcs=reward,
        processing_class=AutoProcessor.from_pretrained(WEIGHTS / "llava"),
        train_dataset=dataset(),
        args=OnlineDPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2,
            max_new_tokens=12,
            max_steps=1,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
        ),
    )
    trainer.train()
    assert reward.calls[0][1] == [1.0] * 4  # two completions for each of two prompts
    there[0].refused = lambda text: True
    with pytest.raises(SightlineError, match="refused"):
        trainer.train()


def call(reward: ClipReward, completions: list[Any], **columns: Any) -> list[float | None]:
    prompts = columns.pop("prompts", ["describe"] * len(completions))
    return reward(prompts=prompts, completions=completions, completion_ids=[[1]] * len(completions), **columns)


def test_rewards_come_in_order_and_failures_are_none(
    there: tuple[Scripted, str], caplog: pytest.LogCaptureFixture
) -> None:
    heard: dict[str, float] = {}
    reward = ClipReward(there[1])
    rewards = call(
        reward,
        ["ok 3", "refuse", "ok 5", "ok 6"],
        image=[PICTURES[0], PICTURES[0], PICTURES[1], None],
        log_metric=heard.__setitem__,
        trainer_state=None,
    )
    assert rewards == [3, None, 5, None]
    assert heard == {"clip_reward/failed": 0.5}
    assert "'TEXT_TOO_LONG': 1" in caplog.text
    assert "'IMAGE_MISSING': 1" in caplog.text
    reward.close()
    assert call(reward, ["ok 1"], image=[PICTURES[0]]) == [1]
    with pytest.raises(SightlineError, match="refused"):
        call(ClipReward(there[1], on_failure="raise"), ["refuse"], image=[PICTURES[0]])


def test_where_images_are_found(there: tuple[Scripted, str], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    PICTURES[0].save(path)
    content = path.read_bytes()
    for columns in (
        {"image": [str(path)]},
        {"image": [path]},
        {"image": [content]},
        {"image": [{"bytes": content, "path": None}]},
        {"image": [{"bytes": None, "path": str(path)}]},
        {"images": [[PICTURES[0]]]},
        {"prompts": [[{"role": "user", "content": [{"type": "image", "image": PICTURES[0]}, {"type": "text"}]}]]},
        {"prompts": [[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": str(path)}}]}]]},
    ):
        assert call(ClipReward(there[1]), ["ok 2"], **columns) == [2], columns
    assert call(ClipReward(there[1], image="photo"), ["ok 2"], photo=[content]) == [2]
    with pytest.raises(InvalidInput, match="no column 'photo': it has image"):
        call(ClipReward(there[1], image="photo"), ["ok 2"], image=[content])
    assert call(ClipReward(there[1]), ["ok 2"]) == [None]


def test_several_images_give_their_mean_and_fail_together(there: tuple[Scripted, str]) -> None:
    assert call(ClipReward(there[1]), ["ok 2"], images=[PICTURES]) == [2]
    turn = itertools.count()
    there[0].refused = lambda text: next(turn) == 2
    assert call(ClipReward(there[1]), ["ok 2"], images=[PICTURES]) == [None]


def test_which_text_is_scored(there: tuple[Scripted, str]) -> None:
    reward = ClipReward(there[1], text=lambda text: text.rpartition("</think>")[2])
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "hm</think>ok 4"}]}]
    spoken = [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "ok 5"}]
    assert call(reward, ["<think>ok 9</think>ok 3", messages, spoken], image=[PICTURES[0]] * 3) == [3, 4, 5]


def test_it_cannot_be_carried_to_another_process(there: tuple[Scripted, str]) -> None:
    with pytest.raises(TypeError, match="create it in the process"):
        pickle.dumps(ClipReward(there[1]))


def test_it_is_called_from_a_running_event_loop_too(there: tuple[Scripted, str]) -> None:
    async def run() -> list[float | None]:
        return call(ClipReward(there[1]), ["ok 3"], image=[PICTURES[0]])

    assert asyncio.run(run()) == [3]
