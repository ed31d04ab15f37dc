"""Make the skilled LVLM from the plain one: training, numbers, card."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sightline_playground.bands import SKILLED_BANDS, outside
from sightline_playground.make import SCENES, bar, quiet

if TYPE_CHECKING:
    from rich.console import Console

NAME: Final = "llava-skilled"
"""Its directory beside `llava`."""


def make_skilled(base: Path, out: Path, seed: int, console: Console) -> list[str]:
    """Train from `base`/llava, save under `out`/llava-skilled with MODEL_CARD.md and metrics.json.

    An interrupted training continues from its checkpoint in `out`/llava-skilled.

    Returns a complaint for each number that is out of its band (none if all are inside).
    """
    quiet()
    from sightline_playground import llava_model, skilled_training
    from sightline_playground.scenes import scenes
    from sightline_playground.skilled_training import SkilledRecipe

    with console.status(f"drawing up {SCENES} training scenes"):
        train = scenes("train", SCENES, seed)
    plain, _ = llava_model.load(base / "llava")
    began = time.monotonic()
    with bar(console, "skilled LVLM") as progress:
        model = skilled_training.train(plain, train, SkilledRecipe(), seed, progress, out / NAME)
    llava_model.save(model, out / NAME, skilled_training.tokenizer())
    (out / NAME / skilled_training.CHECKPOINT).unlink(missing_ok=True)
    return describe(out, seed, console, time.monotonic() - began)


def describe(out: Path, seed: int, console: Console, seconds: float) -> list[str]:
    """Measure the model and write its card. Returns the complaints about its numbers."""
    from sightline_playground import llava_model
    from sightline_playground.skilled_card import card
    from sightline_playground.skilled_training import SkilledRecipe

    numbers = measured(out, console)
    model, _ = llava_model.load(out / NAME)
    written = ("MODEL_CARD.md", "metrics.json")
    facts = {
        "seed": seed,
        "scenes": SCENES,
        "recipe": asdict(SkilledRecipe()),
        "seconds": round(seconds),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(file.stat().st_size for file in (out / NAME).iterdir() if file.name not in written),
    }
    bands = {name: {"low": band.low, "high": band.high, "what": band.what} for name, band in SKILLED_BANDS.items()}
    text = json.dumps({"numbers": numbers, "tolerance": bands, "made": facts}, indent=2)
    (out / NAME / "metrics.json").write_text(text + "\n", encoding="utf-8")
    (out / NAME / "MODEL_CARD.md").write_text(card(numbers, facts), encoding="utf-8")
    return outside(numbers, SKILLED_BANDS)


def measured(weights: Path, console: Console) -> dict[str, float]:
    """All numbers of the skilled LVLM, rounded to 4 decimal places, with a progress message for each part."""
    quiet()
    from sightline_playground.skilled_measure import measure

    with console.status("measuring") as status:
        numbers = measure(weights / NAME, lambda part: status.update(f"measuring: {part}"))
    return {name: round(value, 4) for name, value in numbers.items()}
