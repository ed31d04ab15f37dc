"""Makes a dataset of pictures from texts, the best of several by the scorer (PDS-DPO, arXiv 2412.17417).

    wanted.jsonl, a line a picture:   {"id": "p1", "shows": "a red star beside a blue ring", "prompt": "What is there?"}
                                      and, where they are known, "reference" and "objects"
    DIRECTORY/prompts.jsonl, DIRECTORY/images/p1.png

PDS-DPO makes four pictures of a text (Stable Diffusion 3) and keeps the one with the highest ImageReward; here any
text-to-image endpoint makes them, and the CLIPScore with the wanted content chooses. A text for which no picture could
be made, or none that the scorer accepts, is left out and counted. An existing picture is not made again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sightline.errors import InvalidInput
from sightline.scorer import AsyncScorerClient
from sightline_chassis.images import decode
from sightline_chassis.sections import ImageLimits

from sightline_trainer.dropped import DroppedRows
from sightline_trainer.evaluation.lines import read_lines
from sightline_trainer.files import write_whole
from sightline_trainer.records.refusal import Refusal

NO_PICTURE = "PICTURE_NOT_MADE"


class PictureMaker(Protocol):
    """Makes pictures of a text."""

    async def __call__(self, shows: str, count: int, seed: int) -> list[bytes]:
        """`count` encoded pictures.

        Raises:
            InvalidInput: this text is refused; others may work.
            SightlineError: the endpoint does not answer.
        """
        ...


@dataclass(frozen=True)
class WantedPicture:
    """One line: what a picture should show, and the fields of its row."""

    id: str
    shows: str
    row: dict[str, Any]


def read_wanted(path: Path) -> list[WantedPicture]:
    """The lines of a file.

    Raises:
        InvalidInput: a line can't be read, or an id is duplicate or not a file name; the message names it.
    """
    found: dict[str, WantedPicture] = {}
    for line in read_lines(path, ["id", "shows", "prompt"]):
        id_, row = line.text("id"), dict(line.row)
        if id_ in found or not id_ or Path(id_).name != id_ or id_ in (".", ".."):
            raise line.fault(f"id {id_!r} occurs twice or is not a file name: give each picture its own plain id")
        row.pop("shows")
        found[id_] = WantedPicture(id_, line.text("shows"), row)
    return list(found.values())


async def generate(
    wanted: Sequence[WantedPicture],
    maker: PictureMaker,
    scorer: AsyncScorerClient,
    directory: Path,
    *,
    count: int = 4,
    model: str = "",
    seed: int = 0,
    in_flight: int = 4,
) -> DroppedRows:
    """Make the dataset's pictures, and its prompts.jsonl for those that exist.

    Args:
        count: pictures per text; the best is kept (PDS-DPO: 4).
        model: the scorer's; empty: its default.

    Returns:
        The rows that were left out.
    """
    slots, dropped = asyncio.Semaphore(in_flight), DroppedRows()

    async def one(each: WantedPicture) -> bool:
        path = directory / "images" / f"{each.id}.png"
        if path.exists():
            return True
        try:
            async with slots:
                drawn = int.from_bytes(hashlib.sha256(f"{seed} {each.id}".encode()).digest()[:4], "big")
                best = await best_of(await maker(each.shows, count, drawn), each.shows, scorer, model)
        except InvalidInput as error:
            dropped.add(each.id, Refusal(error.reason, error.message))
            return False
        write_whole(path, lambda aside: aside.write_bytes(best))
        return True

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(each)) for each in wanted]
    rows = [
        json.dumps({**each.row, "image": f"images/{each.id}.png"}, ensure_ascii=False)
        for each, task in zip(wanted, tasks, strict=True)
        if task.result()
    ]
    write_whole(directory / "prompts.jsonl", lambda aside: aside.write_text("\n".join([*rows, ""]), encoding="utf-8"))
    return dropped


async def best_of(pictures: Sequence[bytes], shows: str, scorer: AsyncScorerClient, model: str = "") -> bytes:
    """The picture with the highest CLIPScore for the wanted content; the first of equal ones.

    Raises:
        InvalidInput: PICTURE_NOT_MADE: the scorer accepts none of them.
    """
    best: tuple[float, bytes] | None = None
    why = "none was made"
    for picture in pictures:
        try:
            decode(picture, ImageLimits())
            score = float((await scorer.score(picture, [shows], model=model)).clip_score[0])
        except InvalidInput as error:
            why = error.message
            continue
        if best is None or score > best[0]:
            best = score, picture
    if best is None:
        raise InvalidInput(f"no picture was drawn for {shows[:60]!r}: {why}", reason=NO_PICTURE)
    return best[1]
