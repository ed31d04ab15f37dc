"""`sightline score`: how well does each text fit a picture? A table, or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from sightline.errors import InvalidInput
from sightline.patience import ONCE
from sightline.scorer import ScorerClient, ScoreResult
from sightline_trainer.display import draw

from sightline_cli.local import model_or_playground, service

PLAYGROUND = "playground:clip"


def score(
    image: Path,
    texts: Sequence[str],
    *,
    scorer: str | None,
    name: str,
    model: str | None,
    pretrained: str | None,
    as_json: bool,
) -> None:
    """Ask a running scorer, or start one for this call, and print the scores.

    Raises:
        SightlineError: the scorer refuses the request, or cannot be reached.
        StartError: no scorer could be started.
    """
    if not image.is_file():
        raise InvalidInput(f"there is no image {image}: check the path", reason="IMAGE_NOT_FOUND")
    source = model_or_playground(scorer, model, "--scorer", PLAYGROUND)
    settings = [f"models.default.source={source}"]
    if pretrained is not None:
        settings.append(f"models.default.pretrained={pretrained}")
    with service("scorer", scorer, settings) as at, ScorerClient(at.address, patience=ONCE, **at.credentials) as client:
        result = client.score(image, list(texts), model=name, timeout=120)
    if as_json:
        print(json.dumps(record(result, texts), indent=2, ensure_ascii=False))
    else:
        draw(table(result, texts), Console())


def record(result: ScoreResult, texts: Sequence[str]) -> dict[str, Any]:
    """The scores for JSON, with what is needed to reproduce them."""
    rows = [
        {
            "text": text,
            "clip_score": round(float(result.clip_score[at]), 4),
            "cosine": round(float(result.cosine[at]), 6),
            "logit": round(float(result.logit[at]), 4),
            "tokens": int(result.token_counts[at]),
            "parts": int(result.parts[at]),
        }
        for at, text in enumerate(texts)
    ]
    made_by = {
        "name": result.model.name,
        "weights_digest": result.model.weights_digest,
        "preprocessing_digest": result.model.preprocessing_digest,
    }
    return {"image_sha256": result.image_sha256, "model": made_by, "scores": rows}


def table(result: ScoreResult, texts: Sequence[str]) -> Table:
    """Best first."""
    title = f"{result.model.name} ({result.model.architecture}, weights {result.model.weights_digest[:12]})"
    found = Table(title=escape(title), title_justify="left")
    for name in ("CLIPScore", "cosine", "logit", "tokens", "text"):
        text = name == "text"
        found.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for at in sorted(range(len(texts)), key=lambda at: -float(result.clip_score[at])):
        parts = f" ({result.parts[at]} parts)" if result.parts[at] > 1 else ""
        row = (f"{result.clip_score[at]:.2f}", f"{result.cosine[at]:.4f}", f"{result.logit[at]:.2f}")
        found.add_row(*row, f"{result.token_counts[at]}{parts}", Text(texts[at]))
    return found
