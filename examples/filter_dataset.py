"""Keep the pairs of a dataset whose text fits the image.

    python examples/filter_dataset.py 127.0.0.1:50051 pairs.jsonl --above 25 > kept.jsonl

Each line of the input is JSON with `image` (a path, relative to the file) and `text`; `score` is added to those kept.
What could not be scored is told on stderr and is not kept: a failure is never a number. Images that occur again are
uploaded once.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from sightline.errors import SightlineError
from sightline.scorer import ScorerClient


def main() -> None:
    """Filter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--above", type=float, required=True, help="the least CLIPScore that is kept")
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.pairs.read_text().splitlines()]
    counts: Counter[str] = Counter()
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
    print(f"\n{dict(counts)}", file=sys.stderr)


def _progress(done: int, total: int | None) -> None:
    print(f"\r{done}/{total}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
