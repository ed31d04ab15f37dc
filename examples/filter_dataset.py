"""Keep the pairs of a dataset whose text fits the image.

    python examples/filter_dataset.py 127.0.0.1:50051 pairs.jsonl --above 25 > kept.jsonl

Each line of the input is JSON with `image` (a path, relative to the file) and `text`; `score` is added to those kept.
Rows that could not be scored are reported on stderr and not kept: a failure is never a number. Repeated images are
uploaded once.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from sightline.errors import SightlineError
from sightline.scorer import ScorerClient


def main() -> int:
    """Filter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="address of a scorer, host:port")
    parser.add_argument("pairs", type=Path, help="JSON lines of image and text")
    parser.add_argument("--above", type=float, required=True, help="lowest CLIPScore to keep")
    given = parser.parse_args()
    try:
        rows = [_row(number, line) for number, line in enumerate(given.pairs.read_text("utf-8").splitlines(), 1)]
    except (OSError, ValueError) as error:
        parser.error(f"{given.pairs}: {error}")
    counts: Counter[str] = Counter()
    try:
        with ScorerClient(given.target) as scorer:
            pairs = [(given.pairs.parent / row["image"], [row["text"]]) for row in rows]
            for row, outcome in zip(rows, scorer.score_many(pairs, progress=_progress), strict=True):
                if isinstance(outcome, SightlineError):
                    counts[outcome.reason] += 1
                elif outcome.clip_score[0] >= given.above:
                    counts["kept"] += 1
                    print(json.dumps({**row, "score": round(float(outcome.clip_score[0]), 3)}))
                else:
                    counts["below"] += 1
    except SightlineError as error:  # not about a row, such as a malformed address
        print(f"{error.reason}: {error}", file=sys.stderr)
        return 1
    print(f"\n{dict(counts)}", file=sys.stderr)
    return 0


def _row(number: int, line: str) -> dict[str, str]:
    """Parse a line of the input. Raises ValueError if it is malformed."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("image"), str) or not isinstance(row.get("text"), str):
        raise ValueError(f"line {number} is not an object with image and text")
    return row


def _progress(done: int, total: int | None) -> None:
    print(f"\r{done}/{total}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
