"""The families of models that the tests run: a tiny checkpoint of each, and photos of mixed sizes.

    checkpoint = families.make(tmp_path / "model", "qwen3_vl")

Configs, processors, tokenizers' special tokens and chat templates are each family's own; the weights are random, large
enough that answers depend on the picture and are rarely sure.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path

import family_makers
import family_others
import numpy as np
import torch
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Family:
    """A family, for the tests.

    Attributes:
        build: makes its model and processor.
        quick: whether it is of the few that `make test` runs.
        template: a chat template, for families whose checkpoints bring none.
    """

    build: Callable[[], family_makers.Made]
    quick: bool = False
    template: str | None = None


_PLAIN = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
_ANSWER_EN = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% endif %}{% endfor %}"
    "{{ bos_token }}answer en {% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}\n{% endfor %}"
)

FAMILIES: dict[str, Family] = {
    "llava": Family(family_makers.llava, quick=True),
    "llava_next": Family(family_makers.llava_next),
    "llava_onevision": Family(family_makers.llava_onevision),
    "qwen2_vl": Family(family_makers.qwen2_vl),
    "qwen2_5_vl": Family(family_makers.qwen2_5_vl, quick=True),
    "qwen3_vl": Family(family_makers.qwen3_vl, quick=True),
    "qwen3_5": Family(family_makers.qwen3_5),
    "internvl": Family(family_makers.internvl, quick=True),
    "gemma3": Family(family_makers.gemma3, quick=True),
    "gemma4": Family(family_makers.gemma4),
    "smolvlm": Family(family_makers.smolvlm, quick=True),
    "idefics3": Family(family_makers.idefics3),
    "paligemma": Family(family_makers.paligemma, template=_ANSWER_EN),
    "glm46v": Family(family_makers.glm46v),
    "mobilevlm": Family(family_makers.mobilevlm),
}
OTHERS: dict[str, Family] = {
    "mllama": Family(family_others.mllama),
    "blip_2": Family(family_others.blip_2, template=_PLAIN),
    "instructblip": Family(family_others.instructblip, template=_PLAIN),
    "minicpmv4_6": Family(family_others.minicpmv4_6),
    "molmo2": Family(family_others.molmo2),
}
"""Those that run, or are refused at start with the reason."""


def make(directory: Path, family: str, *, seed: int = 0) -> Path:
    """Write a random checkpoint of a family in `FAMILIES` or `OTHERS`, without its `template`; return the directory."""
    torch.manual_seed(seed)
    model, processor = (FAMILIES | OTHERS)[family].build()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            decoder = "language_model" in name or "text_model" in name or "lm_head" in name
            if parameter.dim() >= 2:
                # As if at the usual deviation for so few numbers in a row; what embeds stays small beside images.
                scale = 1.0 if decoder else 1.5
                parameter.normal_(0, scale * parameter[0].numel() ** -0.5, generator=generator)
            elif name.endswith("gate"):  # Mllama's: at zero the image would not be seen
                parameter.fill_(1.0)
            elif "norm" not in name:
                parameter.normal_(0, 0.1, generator=generator)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@functools.cache
def photos() -> tuple[bytes, ...]:
    """Eight JPEGs of mixed shapes, portrait and landscape: photos of 300x900 to 1920x1080 at a fifth of their size."""
    sizes = [(300, 900), (1920, 1080), (640, 480), (480, 640), (1024, 1024), (900, 300), (1080, 1920), (800, 600)]
    return tuple(photo(number, (width // 5, height // 5)) for number, (width, height) in enumerate(sizes))


def photo(seed: int, size: tuple[int, int]) -> bytes:
    """A JPEG with coarse colours and shapes, so that it is another image at any resolution; (width, height)."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize(size, Image.Resampling.NEAREST)
    fine = Image.fromarray(random.integers(0, 255, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)).resize(size)
    out = io.BytesIO()
    Image.blend(coarse, fine, 0.3).save(out, "JPEG", quality=90)
    return out.getvalue()
