"""Dataset references in a recipe: those that the trainer's pools know, or `playground:SPLIT?count=N&seed=S`, drawn
here.

The services do not know the playground; the command line turns a reference into a directory for them.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from sightline.errors import InvalidInput


def resolve(reference: str, cache: Path, most: int | None = None) -> str:
    """The dataset's reference for the trainer; playground scenes are drawn into `cache` once.

    Args:
        most: draw at most this many scenes, the first ones; None draws all.

    Raises:
        InvalidInput: a playground reference that can't be read.
    """
    parts = urlsplit(reference)
    if parts.scheme != "playground":
        return reference
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    unknown = set(query) - {"count", "seed"}
    if unknown:
        raise InvalidInput(f"{reference!r}: unknown {sorted(unknown)}; known are count and seed", reason="DATASET")
    try:
        count, seed = int(query.get("count", "512")), int(query.get("seed", "0"))
    except ValueError:
        raise InvalidInput(f"{reference!r}: count and seed are whole numbers", reason="DATASET") from None
    if count < 1:
        raise InvalidInput(f"{reference!r}: count is 1 or more", reason="DATASET")
    count = count if most is None else min(count, most)
    directory = cache / f"{parts.path}-{count}-{seed}"
    done = directory / "export.json"
    if not done.exists():
        from sightline_playground.export import export
        from sightline_playground.scenes import SPLITS

        split = next((split for split in SPLITS if split == parts.path), None)
        if split is None:
            raise InvalidInput(f"{reference!r}: no such split; known are {', '.join(SPLITS)}", reason="DATASET")
        export(directory, split=split, count=count, seed=seed)
        done.write_text(json.dumps({"reference": reference}))
    return str(directory)
