"""Painter: a text-to-image server over HTTP that draws texts of the small world by the renderer.

    python -m sightline_playground paint --port 8090
    POST /images/generations   {"prompt": "a red star at the top left and a blue ring", "n": 4, "seed": 7}

It replaces a diffusion model and makes similar errors: now and then an object has another colour, so that the best of
several pictures is worth choosing. The same prompt, number and seed give the same pictures.
"""

from __future__ import annotations

import base64
import io
import json
import random
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from sightline_playground.drawing import draw
from sightline_playground.scenes import JITTER, PlacedObject, Scene
from sightline_playground.world import BY_NAME, COLOURS, PLACES, Thing, stream

WRONG: Final = 0.25
"""Chance that an object is drawn in another colour."""
MOST_BYTES: Final = 1 << 16
MOST_PICTURES: Final = 16
_OBJECTS: Final = re.compile("|".join(sorted(BY_NAME, key=len, reverse=True)))


def scene_of(text: str, rng: random.Random) -> Scene:
    """A scene with the objects that a text names, in the named places; the others take any free place.

    Raises:
        ValueError: the text names no object of this world, or more than nine.
    """
    named = list(_OBJECTS.finditer(text.lower()))
    if not 1 <= len(named) <= 9:
        raise ValueError(f"{len(named)} objects are named; a picture holds 1 to 9")
    ends = [each.start() for each in named[1:]] + [len(text)]
    told = [_cell(text.lower()[each.end() : end]) for each, end in zip(named, ends, strict=True)]
    taken: dict[int, Thing] = {}
    for each, cell in zip(named, told, strict=True):
        if cell is None or cell in taken:
            cell = rng.choice([free for free in range(9) if free not in taken and free not in told] or _free(taken))
        taken[cell] = BY_NAME[each[0]]
    items = [
        PlacedObject(cell, thing, rng.randint(-JITTER, JITTER), rng.randint(-JITTER, JITTER))
        for cell, thing in sorted(taken.items())
    ]
    return Scene(tuple(items), rng.randint(230, 250))


def _free(taken: dict[int, Thing]) -> list[int]:
    return [cell for cell in range(9) if cell not in taken]


def _cell(words: str) -> int | None:
    """The cell of the longest place that is named."""
    found = [(len(place), cell) for cell, place in enumerate(PLACES) if place in words]
    return max(found)[1] if found else None


def paint(text: str, count: int, seed: int) -> list[bytes]:
    """`count` PNGs of a text, some with errors. Raises ValueError as `scene_of` does."""
    rng, found = stream("painter", seed, text), []
    for _ in range(count):
        scene = scene_of(text, rng)
        items = tuple(
            PlacedObject(item.cell, _recoloured(item.thing, rng), item.dx, item.dy) if rng.random() < WRONG else item
            for item in scene.items
        )
        kept = io.BytesIO()
        draw(Scene(items, scene.shade)).save(kept, format="PNG")
        found.append(kept.getvalue())
    return found


def _recoloured(thing: Thing, rng: random.Random) -> Thing:
    return BY_NAME[f"{rng.choice([name for name in COLOURS if name != thing.colour])} {thing.shape}"]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        try:
            length = int(self.headers.get("Content-Length", 0))
            asked = json.loads(self.rfile.read(min(length, MOST_BYTES)))
            count = int(asked.get("n", 1))
            if not 1 <= count <= MOST_PICTURES:
                raise ValueError(f"n is {count}; wanted 1 to {MOST_PICTURES}")
            pictures = paint(str(asked["prompt"]), count, int(asked.get("seed", 0)))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self._answer(400, {"error": {"message": str(error)}})
            return
        self._answer(200, {"data": [{"b64_json": base64.b64encode(one).decode()} for one in pictures]})

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def server(port: int = 0) -> ThreadingHTTPServer:
    """A painter on loopback; port 0 selects a free port."""
    return ThreadingHTTPServer(("127.0.0.1", port), _Handler)
