"""TRL's GRPOTrainer with the scorer as its reward.

    python examples/trl_grpo_reward.py 127.0.0.1:50051 --model playground/weights/llava --images DIRECTORY --steps 2

The dataset is one prompt for each image of a directory. A completion that cannot be scored has reward None, which TRL
leaves out; the share of them is logged as `clip_reward/failed`.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset, Image
from sightline.integrations.trl import ClipReward
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", default="runs/grpo")
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    prompt = [{"role": "user", "content": "Describe the image."}]
    files = sorted(str(path) for path in given.images.iterdir() if path.suffix in (".png", ".jpg"))
    dataset = Dataset.from_dict({"prompt": [prompt] * len(files), "image": files}).cast_column("image", Image())
    model = AutoModelForImageTextToText.from_pretrained(given.model)
    trainer = GRPOTrainer(
        model=model,
        processing_class=AutoProcessor.from_pretrained(given.model),
        reward_funcs=ClipReward(given.target),
        train_dataset=dataset,
        args=GRPOConfig(
            output_dir=given.out,
            max_steps=given.steps,
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
    main()
