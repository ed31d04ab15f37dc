"""CHAIR for a file of captions: compares captions with their images' objects; gives counts, ratios and intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import InvalidInput

from sightline_trainer.evaluation.chair import CaptionCounts, Chair, Objects, count
from sightline_trainer.evaluation.coco import image_key
from sightline_trainer.evaluation.lines import named, read_lines
from sightline_trainer.evaluation.ratios import Ratios


@dataclass(frozen=True)
class CaptionTable:
    """Captions and what they mention, in file order."""

    images: list[str]
    counts: list[CaptionCounts]

    def chair(self) -> Chair:
        """Integer counts over all."""
        return Chair.of(self.counts)

    def ratios(self) -> Ratios:
        """CHAIR_s, CHAIR_i, recall and the mean length, by image."""
        rows = [(image, one.parts()) for image, one in zip(self.images, self.counts, strict=True)]
        return Ratios.collect((image, {_NAMES.get(k, k): v for k, v in parts.items()}) for image, parts in rows)

    def details(self) -> list[dict[str, Any]]:
        """For each caption: what it mentions and where, what is wrong, what it missed."""
        return [
            {
                "image_id": image,
                "caption": one.text,
                "objects": sorted(one.truth),
                "mentions": [[m.object, m.words, m.start, m.end] for m in one.mentions],
                "hallucinated": [[m.object, m.words, m.start, m.end] for m in one.hallucinated],
                "missed": one.missed,
            }
            for image, one in zip(self.images, self.counts, strict=True)
        ]


_NAMES = {"cover": "recall"}


def read_captions(path: Path, *, image_id_key: str = "image_id", caption_key: str = "caption") -> list[tuple[str, str]]:
    """`(image id, caption)` from objects `{"image_id", "caption"}`; the keys are configurable.

    Raises:
        InvalidInput: a line can't be read; the message names it.
    """
    lines = read_lines(path, [image_id_key, caption_key])
    found = [(image_key(line.name(image_id_key)), line.text(caption_key)) for line in lines]
    if not found:
        raise InvalidInput(f"{path} contains no caption", reason="EMPTY")
    return found


def count_captions(
    captions: Sequence[tuple[str, str]],
    truth: Mapping[str, frozenset[str]],
    objects: Objects,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CaptionTable:
    """Count mentions against truth.

    Raises:
        InvalidInput: the truth lacks a caption's image. The official script treats such an image as empty, so that
            everything in its caption counts as hallucinated.
    """
    unknown = list(dict.fromkeys(image for image, _ in captions if image not in truth))
    if unknown:
        raise InvalidInput(
            f"{len(unknown)} of the captions' images are not in the truth: {named(unknown)}; give the truth file of "
            f"these images' split, or leave their captions out",
            reason="UNKNOWN_IMAGE",
        )
    counts = []
    for done, (image, caption) in enumerate(captions, 1):
        counts.append(count(caption, truth[image], objects))
        if done % 500 == 0 or done == len(captions):
            progress(done, len(captions))
    return CaptionTable([image for image, _ in captions], counts)
