"""verl with the scorer as its reward, by configuration alone.

    custom_reward_function.path=pkg://sightline.integrations.verl
    custom_reward_function.name=compute_score_async
    +custom_reward_function.reward_kwargs.target=scorer:50051
    +custom_reward_function.reward_kwargs.on_failure=raise

verl removes the prompt's images from a row before it computes rewards, so the dataset must repeat the image in
`extra_info`. This script makes such a row and calls the function as verl's reward manager does:

    python examples/verl_reward.py 127.0.0.1:50051 cat.jpg "a cat on a sofa"
"""

import argparse
import sys

from sightline.errors import SightlineError
from sightline.integrations.verl import compute_score


def row(image: str) -> dict[str, object]:
    """A row of the Parquet file that verl reads."""
    return {
        "data_source": "captions",
        "prompt": [{"role": "user", "content": "<image>Describe the image."}],
        "images": [{"image": image}],
        "reward_model": {"style": "model", "ground_truth": ""},
        "extra_info": {"image": image},
    }


def main() -> int:
    """Print the reward of a response."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="address of a scorer, host:port")
    parser.add_argument("image", help="a picture's file")
    parser.add_argument("response", help="a policy's response about the image")
    given = parser.parse_args()
    example = row(given.image)
    try:
        reward = compute_score(
            data_source="captions",
            solution_str=given.response,
            ground_truth="",
            extra_info=example["extra_info"],  # type: ignore[arg-type]
            target=given.target,
            on_failure="raise",
        )
    except SightlineError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return 1
    print(reward)
    return 0


if __name__ == "__main__":
    sys.exit(main())
