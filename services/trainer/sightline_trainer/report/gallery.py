"""Gallery: pictures with their captions before and after, and all candidates with rewards and their pair."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image
from sightline.errors import InvalidInput
from sightline.runs import PictureChange
from sightline_chassis.images import decode
from sightline_chassis.sections import ImageLimits

from sightline_trainer.evaluation.facts import Facts
from sightline_trainer.files import read_table
from sightline_trainer.pools import Pool, open_pool, side_files
from sightline_trainer.pools.pool import id_digest
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.report.history import History
from sightline_trainer.report.marking import differences, mark_spans
from sightline_trainer.rollout import Rollout

THUMBNAIL = 320
"""Maximum side of a picture in the page, in pixels; small ones keep their size."""


@dataclass(frozen=True)
class Said:
    """One text about a picture. If the truth is known, `wrong` and `missed` name objects, and `spans` are the positions
    of the wrong ones in the text (start, end in characters)."""

    text: str
    reward: float | None
    tokens: int
    wrong: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)

    @property
    def html(self) -> Markup:
        """The text with wrong words marked."""
        return mark_spans(self.text, self.spans)


@dataclass(frozen=True)
class Change:
    """A held-out picture, with the captions of the base model and of the last policy."""

    prompt: Prompt
    image: bytes
    before: Said
    after: Said

    @property
    def picture(self) -> str:
        """The image as a data URI; "" if there is none."""
        return data_uri(self.image)

    @property
    def wrongs(self) -> int:
        """Number of wrong objects minus that before."""
        return len(self.after.wrong) - len(self.before.wrong)

    @property
    def kind(self) -> PictureChange:
        """ "better", "worse" or "same", by wrong objects, then by reward."""
        gain = -self.wrongs or _sign((self.after.reward or 0.0) - (self.before.reward or 0.0))
        return "better" if gain > 0 else "worse" if gain < 0 else "same"


@dataclass(frozen=True)
class Offer:
    """A candidate of a training prompt: its sentences' scores if scored by sentence, and its role in a pair."""

    said: Said
    source: str
    role: str
    sentences: list[float]
    error: str


@dataclass(frozen=True)
class Contest:
    """A training picture: its candidates, best first, and the pair that was trained on, as a difference."""

    prompt: Prompt
    picture: str
    iteration: int
    offers: list[Offer]
    chosen: Markup
    rejected: Markup
    margin: float | None

    @property
    def kind(self) -> str:
        """ "pair" or "dropped"."""
        return "pair" if self.margin is not None else "dropped"


class Pictures:
    """Prompts of a dataset by id, with reduced pictures and the errors of texts about them."""

    def __init__(self, reference: str, cache: Path) -> None:
        self.pool: Pool = open_pool(reference, cache)
        directory = side_files(reference)
        self.facts = Facts.load(directory) if (directory / "vocabulary.json").is_file() else None

    def prompts(self, ids: Sequence[str]) -> dict[str, Prompt]:
        """The prompts of these ids that the dataset has."""
        wanted = np.asarray([id_digest(each) for each in ids], dtype=np.uint64)
        rows = np.flatnonzero(np.isin(self.pool.digests, wanted)).tolist()
        return {prompt.id: prompt for prompt in self.pool.rows(rows)}

    def said(self, prompt: Prompt, text: str, reward: float | None, tokens: int) -> Said:
        """A text with its errors marked, if the dataset knows the truth."""
        if self.facts is None or not prompt.objects:
            return Said(text, reward, tokens)
        counts = self.facts.read(prompt.id, text, prompt.objects).caption
        spans = [(mention.start, mention.end) for mention in counts.hallucinated]
        wrong = list(dict.fromkeys(mention.object for mention in counts.hallucinated))
        return Said(text, reward, tokens, wrong, list(counts.missed), spans)

    @staticmethod
    def image(prompt: Prompt) -> bytes:
        """PNG or JPEG, with several images side by side; empty if a file is missing or unusable."""
        try:
            images = [decode(path.read_bytes(), ImageLimits()) for path in prompt.images]
        except (OSError, InvalidInput):
            return b""
        image = images[0] if len(images) == 1 else _side_by_side(images)
        image.thumbnail((THUMBNAIL * len(images), THUMBNAIL))
        out = io.BytesIO()
        kind = "PNG" if max(image.size) <= 128 else "JPEG"
        image.save(out, kind, quality=80)
        return out.getvalue()


def data_uri(image: bytes) -> str:
    """An image from `Pictures.image`, for a page; "" if it is empty."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}" if image else ""


def changes(history: History, limit: int, iteration: int | None = None) -> tuple[list[Change], list[Change]]:
    """Held-out pictures: the base model compared with the last measured policy, or an iteration's.

    Returns:
        The first `limit` in dataset order, and the `limit // 4` worst regressions of all: most objects wrong that
        were right before, then the largest fall of the reward.
    """
    measured = [int(row["iteration"]) for row in history.rows]
    if len(measured) < 2:
        return [], []
    shown = measured[-1] if iteration is None else iteration
    first, last = (_captions(history, number) for number in (measured[0], shown))
    both = [each for each in first if each in last]
    pictures = Pictures(history.recipe["data"]["test"], history.run.images)

    def fall(each: str) -> tuple[float, float]:
        more = len(last[each]["hallucinated"]) - len(first[each]["hallucinated"])
        return -more, (last[each]["reward"] or 0.0) - (first[each]["reward"] or 0.0)

    worst = [each for each in sorted(both, key=fall)[: max(1, limit // 4)] if fall(each) < (0.0, 0.0)]
    prompts = pictures.prompts([*both[:limit], *worst])

    def change(each: str) -> Change:
        prompt = prompts[each]
        before, after = (
            pictures.said(prompt, row["text"], row["reward"], row["tokens"]) for row in (first[each], last[each])
        )
        return Change(prompt, pictures.image(prompt), before, after)

    return [change(each) for each in both[:limit] if each in prompts], [
        change(each) for each in worst if each in prompts
    ]


def side_by_side(one: History, other: History, limit: int) -> list[Change]:
    """Held-out pictures that both runs described: the first run's last policy compared with the second's."""
    captions = [_captions(each, int(each.rows[-1]["iteration"])) if each.rows else {} for each in (one, other)]
    first, last = captions
    both = [each for each in first if each in last][:limit]
    pictures = Pictures(one.recipe["data"]["test"], one.run.images)
    prompts = pictures.prompts(both)
    found = []
    for each in both:
        if (prompt := prompts.get(each)) is not None:
            said = (
                pictures.said(prompt, row["text"], row["reward"], row["tokens"]) for row in (first[each], last[each])
            )
            before, after = said
            found.append(Change(prompt, pictures.image(prompt), before, after))
    return found


def contests(history: History, limit: int) -> list[Contest]:
    """Training pictures of the last iteration with pairs, with all their candidates."""
    numbers = [number for number in history.counts if (history.run.iteration(number) / "pairs.parquet").exists()]
    if not numbers or not limit:
        return []
    directory = history.run.iteration(max(numbers))
    columns = ["prompt_id", "chosen", "rejected", "chosen_index", "rejected_index", "margin"]
    pairs = {row["prompt_id"]: row for row in read_table(directory / "pairs.parquet", columns=columns).to_pylist()}
    groups = {}
    for prompt_id, scored in Rollout(directory).read():
        groups[prompt_id] = scored
        if len(groups) == limit:
            break
    pictures = Pictures(history.recipe["data"]["train"], history.run.images)
    prompts = pictures.prompts(list(groups))
    found = []
    for prompt_id, scored in groups.items():
        if (prompt := prompts.get(prompt_id)) is None:
            continue
        pair = pairs.get(prompt_id)
        roles = {pair["chosen_index"]: "chosen", pair["rejected_index"]: "rejected"} if pair else {}
        offers = [
            Offer(
                said=pictures.said(prompt, each.text, each.score.reward, len(each.token_ids)),
                source=each.source,
                role=roles.get(each.index, ""),
                sentences=each.score.sentences,
                error=each.score.error,
            )
            for each in sorted(scored, key=lambda each: -(each.score.reward or 0.0))
        ]
        chosen, rejected = differences(*(_text(pair[side]) if pair else "" for side in ("chosen", "rejected")))
        margin = pair["margin"] if pair else None
        found.append(Contest(prompt, data_uri(pictures.image(prompt)), max(numbers), offers, chosen, rejected, margin))
    return found


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Images at one height in a row, with small gaps."""
    height = min(THUMBNAIL, max(image.height for image in images))
    parts = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in images]
    row = Image.new("RGB", (sum(part.width for part in parts) + 4 * (len(parts) - 1), height), "white")
    at = 0
    for part in parts:
        row.paste(part, (at, 0))
        at += part.width + 4
    return row


def _captions(history: History, number: int) -> Mapping[str, dict]:  # type: ignore[type-arg]
    path = history.run.iteration(number) / "captions.parquet"
    rows: Iterable[dict] = read_table(path).to_pylist() if path.exists() else []  # type: ignore[type-arg]
    return {row["prompt_id"]: row for row in rows}


def _text(messages: Sequence[Mapping[str, str]]) -> str:
    return messages[-1]["content"]


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
