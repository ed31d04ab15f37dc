"""Make the playground's weights from scratch: scenes, scorer, LVLM, numbers, card. Takes minutes on two cores."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sightline_playground.bands import BANDS, outside

if TYPE_CHECKING:
    from rich.console import Console

    from sightline_playground.clip_training import Progress
    from sightline_playground.llava_training import LlavaRecipe

SCENES: Final = 20_000
"""Training scenes."""


def make(
    out: Path, seed: int, console: Console, scorer: Path | None = None, recipe: LlavaRecipe | None = None
) -> list[str]:
    """Train, save under `out`/clip and `out`/llava, measure, write MODEL_CARD.md and metrics.json.

    Args:
        scorer: directory of a made playground whose scorer is kept; only the LVLM is trained then.
        recipe: the LVLM's; None means the shipped LVLM's.

    Returns the complaints about numbers out of their bands (empty when all is well).
    """
    quiet()
    from sightline_playground import clip_model, clip_training, llava_model, llava_training
    from sightline_playground.clip_training import ClipRecipe
    from sightline_playground.llava_training import LlavaRecipe
    from sightline_playground.scenes import scenes

    recipe = recipe or LlavaRecipe()
    with console.status(f"drawing up {SCENES} training scenes"):
        train = scenes("train", SCENES, seed)
    began = time.monotonic()
    if scorer is None:
        with bar(console, "scorer") as progress:
            clip = clip_training.train(train, ClipRecipe(), seed, progress)
        scorer_seconds = time.monotonic() - began
    else:
        clip, _, _ = clip_model.load(scorer / "clip")
        known = json.loads((scorer / "metrics.json").read_text(encoding="utf-8"))
        scorer_seconds = known["made"]["seconds"]["scorer"]
    if scorer is None or scorer.resolve() != out.resolve():
        clip_model.save(clip, out / "clip")
    between = time.monotonic()
    with bar(console, "LVLM  ") as progress:
        llava = llava_training.train(clip, train, recipe, seed, progress)
    llava_model.save(llava, out / "llava")
    return describe(out, seed, console, recipe, {"scorer": scorer_seconds, "lvlm": time.monotonic() - between})


def describe(out: Path, seed: int, console: Console, recipe: LlavaRecipe, seconds: dict[str, float]) -> list[str]:
    """Measure the models in `out` and write MODEL_CARD.md and metrics.json; the complaints about their numbers."""
    from sightline_playground import clip_model, llava_model
    from sightline_playground.card import card
    from sightline_playground.clip_training import ClipRecipe

    numbers = measured(out, console)
    clip, _, _ = clip_model.load(out / "clip")
    llava, _ = llava_model.load(out / "llava")
    facts = {
        "seed": seed,
        "scenes": SCENES,
        "scorer": asdict(ClipRecipe()),
        "lvlm": asdict(recipe),
        "seconds": {part: round(value) for part, value in seconds.items()},
        "parameters": {
            "scorer": _parameters(clip),
            "lvlm": _parameters(llava),
            "vision_tower": _parameters(llava.model.vision_tower),
        },
        "bytes": sum(file.stat().st_size for part in ("clip", "llava") for file in (out / part).iterdir()),
    }
    bands = {name: {"low": band.low, "high": band.high, "what": band.what} for name, band in BANDS.items()}
    text = json.dumps({"numbers": numbers, "tolerance": bands, "made": facts}, indent=2)
    (out / "metrics.json").write_text(text + "\n", encoding="utf-8")
    (out / "MODEL_CARD.md").write_text(card(numbers, facts), encoding="utf-8")
    return outside(numbers)


def measured(weights: Path, console: Console) -> dict[str, float]:
    """All numbers of the weights, rounded to 4 decimal places, with a progress message for each part."""
    quiet()
    from sightline_playground.measure import measure

    with console.status("measuring") as status:
        numbers = measure(weights, lambda part: status.update(f"measuring: {part}"))
    return {name: round(value, 4) for name, value in numbers.items()}


def quiet() -> None:
    """Keep the libraries off the network, and silence their progress bars and warnings."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def bar(console: Console, name: str) -> Iterator[Progress]:
    """A progress bar for the training of a model."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[word]}"),
    )
    with Bars(*columns, console=console) as bars:
        task = bars.add_task(f"training the {name}", total=None, word="")

        def progress(done: int, total: int, word: str) -> None:
            bars.update(task, completed=done, total=total, word=word)

        yield progress
