"""The engine's self-check in half precision: it is compared with the model's own rounding."""

from pathlib import Path

import pytest
import torch
from sampler_models import make_llava
from sightline.errors import PreconditionFailed
from sightline_sampler.engines.local import attention, selfcheck
from sightline_sampler.engines.local.model import BaseModel, load_base
from sightline_sampler.engines.local.prompts import PromptBuilder
from sightline_sampler.engines.local.selfcheck import TrialPrompt


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("llava"))


def loaded(llava: Path, dtype: str) -> tuple[BaseModel, TrialPrompt]:
    base = load_base(str(llava), device="cpu", dtype=dtype, chat_template=None)
    return base, TrialPrompt(base, PromptBuilder(base), [selfcheck.blocks(0, (96, 96))], "probe")


def test_a_model_may_be_off_by_twice_its_own_rounding(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selfcheck.TOLERANCE, torch.bfloat16, 1e-4)  # this one rounds less than 7 B parameters do
    base, probe = loaded(llava, "bfloat16")
    rounding = selfcheck._rounding(base, probe)
    assert rounding > 1e-4
    limit = selfcheck._limit(base, [probe])
    assert limit == 2 * rounding
    assert selfcheck.attention_error(base, probe) <= limit
    assert base.model.get_decoder().config._attn_implementation == attention.NAME
    with pytest.raises(PreconditionFailed, match="attends wrongly"):
        selfcheck._refuse_over(limit, 2.1 * rounding, base, "attends")


def test_the_limit_stays_where_rounding_is_small(llava: Path) -> None:
    base, probe = loaded(llava, "bfloat16")
    assert selfcheck._limit(base, [probe]) == 0.05
    base, probe = loaded(llava, "float32")
    assert selfcheck._limit(base, [probe]) == 1e-3
