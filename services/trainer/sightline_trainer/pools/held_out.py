"""Checks that evaluation pictures are not trained on, regardless of their ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from sightline.errors import PreconditionFailed

from sightline_trainer.records.prompt import Prompt


def hold_out(train: Iterable[Prompt], test: Iterable[Prompt]) -> None:
    """Check that no picture of `test` is in `train`. Pictures are compared by their files' bytes, and only if their
    sizes are equal, so that large datasets are not read for this.

    Raises:
        PreconditionFailed: some are; the message says how many, how many with the same text, and names one of each
            side.
    """
    held: dict[int, list[tuple[Path, Prompt]]] = {}
    for prompt in test:
        for image in prompt.images:
            held.setdefault(_size(image), []).append((image, prompt))
    held.pop(-1, None)  # a missing picture is reported and dropped when it is drawn
    digests: dict[Path, str] = {}
    known = {size: {_digest(image, digests): prompt for image, prompt in shown} for size, shown in held.items()}
    texts = {(_digest(image, digests), prompt.prompt) for shown in held.values() for image, prompt in shown}
    found: dict[str, tuple[Prompt, Prompt]] = {}
    same_text = set()
    for image, prompt in ((image, one) for one in train for image in one.images):
        of_this_size = known.get(_size(image))
        if of_this_size is None:
            continue
        digest = _digest(image, digests)
        if digest in of_this_size:
            found.setdefault(digest, (prompt, of_this_size[digest]))
            if (digest, prompt.prompt) in texts:
                same_text.add(digest)
    if found:
        one, other = next(iter(found.values()))
        raise PreconditionFailed(
            f"train and test share {len(found)} pictures ({len(same_text)} with the same text), such as {one.id} of "
            f"train and {other.id} of test; evaluation must be held out",
            reason="TEST_LEAKS",
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _digest(path: Path, known: dict[Path, str]) -> str:
    if path not in known:
        with path.open("rb") as file:
            known[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return known[path]
