"""TRL's GRPOTrainer with the scorer as its reward.

    python examples/trl_grpo_reward.py 127.0.0.1:50051 --model playground/weights/llava --images DIRECTORY --steps 2

The dataset is one prompt for each image of a directory. A completion that cannot be scored has reward None, which TRL
leaves out; the share of such completions is logged as `clip_reward/failed`.
"""

import argparse
import sys
from pathlib import Path

from sightline.errors import SightlineError


def main() -> int:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="address of a scorer, host:port")
    parser.add_argument("--model", required=True, help="directory or hub name of the policy")
    parser.add_argument("--images", type=Path, required=True, help="directory of .png and .jpg files")
    parser.add_argument("--out", default="runs/grpo")
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    files = []
    if given.images.is_dir():
        files = sorted(str(path) for path in given.images.iterdir() if path.suffix in (".png", ".jpg"))
    if not files:
        parser.error(f"no .png or .jpg in {given.images}")
    try:
        train(given.target, given.model, files, given.out, given.steps)
    except ModuleNotFoundError as error:
        parser.error(f"this needs the package {error.name}: pip install 'sightline[trainer]'")
    except OSError as error:  # transformers' error for a missing model
        parser.error(str(error).splitlines()[0])
    except SightlineError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return 1
    return 0


def train(target: str, name: str, files: list[str], out: str, steps: int) -> None:
    """Run some steps of GRPO and print the rewards."""
    import torch
    from datasets import Dataset, Image
    from sightline.integrations.trl import ClipReward
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import GRPOConfig, GRPOTrainer

    prompt = [{"role": "user", "content": "Describe the image."}]
    dataset = Dataset.from_dict({"prompt": [prompt] * len(files), "image": files}).cast_column("image", Image())
    model = AutoModelForImageTextToText.from_pretrained(name)
    trainer = GRPOTrainer(
        model=model,
        processing_class=AutoProcessor.from_pretrained(name),
        reward_funcs=ClipReward(target),
        train_dataset=dataset,
        args=GRPOConfig(
            output_dir=out,
            max_steps=steps,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=64,
            # A sampled image token would not match the image's features in the next forward pass.
            generation_kwargs={"suppress_tokens": [model.config.image_token_id]},
            logging_steps=1,
            save_strategy="no",
            bf16=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
        ),
    )
    trainer.train()
    for line in trainer.state.log_history:
        if "reward" in line:
            print(f"step {line['step']}: reward {line['reward']:.2f}, failed {line['clip_reward/failed']:.0%}")


if __name__ == "__main__":
    sys.exit(main())
