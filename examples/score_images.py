"""How well does each text fit an image?

    sightline serve scorer --set models.default.source=ViT-B-32 --set models.default.pretrained=laion2b_s34b_b79k \
        --set server.port=50051
    python examples/score_images.py 127.0.0.1:50051 cat.jpg "a cat on a sofa" "a dog in the rain"
"""

import argparse
import sys

from sightline.errors import SightlineError
from sightline.scorer import ScorerClient


def main() -> int:
    """Print a line for each text, best first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="address of a scorer, host:port")
    parser.add_argument("image", help="a picture's file")
    parser.add_argument("texts", nargs="+", help="texts to compare")
    given = parser.parse_args()
    try:
        with ScorerClient(given.target) as scorer:
            result = scorer.score(given.image, given.texts)
    except SightlineError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return 1
    for index in (-result.clip_score).argsort():
        print(f"{result.clip_score[index]:6.2f}  {given.texts[index]}")
    print(f"{result.model.name}, weights {result.model.weights_digest[:12]}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
