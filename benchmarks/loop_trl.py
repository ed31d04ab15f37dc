"""TRL's arms of the loop benchmark: OnlineDPOTrainer with defaults and at its best, and GRPOTrainer.

The reward runs in the same process. *At its best* means that OnlineDPOTrainer computes logits only at the answer's
positions (`logits_to_keep`), which is not its default; GRPOTrainer does this itself. Gradient checkpointing and bf16
are on by default, but off here, because on a CPU they only add cost.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

BETA, RATE = 0.1, 8e-4


@dataclass(frozen=True)
class Shape:
    """One size of the work.

    Attributes:
        model: the LVLM's directory.
        clip: the reward's open_clip directory.
        tokens: maximum new tokens of an answer.
        prompts: of an iteration.
        batch: pairs of an update's step; TRL's OnlineDPO makes a pair of each prompt.
    """

    model: Path
    clip: Path
    tokens: int
    prompts: int
    batch: int


class ClipReward:
    """A CLIP in process as a reward function of TRL: cosines of captions with their images, each encoded once."""

    __name__ = "clip"

    def __init__(self, directory: Path) -> None:
        import open_clip

        name = f"local-dir:{directory}"
        self._model, _, self._preprocess = open_clip.create_model_and_transforms(name)
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(name)

    def __call__(self, prompts: Any, completions: Any, image: list[Any], **rest: Any) -> list[float]:
        import torch

        keys = [hashlib.sha256(each.tobytes()).digest() for each in image]
        unique = dict(zip(keys, image, strict=True))
        place = {key: row for row, key in enumerate(unique)}
        with torch.inference_mode():
            pixels = torch.stack([self._preprocess(each.convert("RGB")) for each in unique.values()])
            images = self._model.encode_image(pixels, normalize=True)[[place[key] for key in keys]]
            texts = self._tokenizer([completion[0]["content"] for completion in completions])
            return list((images * self._model.encode_text(texts, normalize=True)).sum(-1).tolist())


@dataclass
class Peers:
    """TRL's trainers for one shape, each for one iteration."""

    shape: Shape
    work: Path

    def online(self, rows: list[Any], *, best: bool = False) -> Any:
        """OnlineDPOTrainer: K = 2."""
        from transformers import PrinterCallback
        from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

        made = (_answers_only(OnlineDPOTrainer) if best else OnlineDPOTrainer)(
            args=OnlineDPOConfig(
                max_new_tokens=self.shape.tokens, beta=BETA, per_device_train_batch_size=self.shape.batch, **self._same
            ),
            **self._parts(rows),
        )
        made.remove_callback(PrinterCallback)
        return made

    def grpo(self, rows: list[Any], candidates: int = 8) -> Any:
        """GRPOTrainer: K candidates, all used for training; the same number of steps as the others."""
        from transformers import PrinterCallback
        from trl import GRPOConfig, GRPOTrainer

        made = GRPOTrainer(
            args=GRPOConfig(
                max_completion_length=self.shape.tokens,
                num_generations=candidates,
                per_device_train_batch_size=candidates * self.shape.batch,
                shuffle_dataset=False,
                **self._same,
            ),
            **self._parts(rows),
        )
        made.remove_callback(PrinterCallback)
        return made

    @cached_property
    def _same(self) -> dict[str, Any]:
        from transformers import AutoProcessor

        return {
            "output_dir": str(self.work / "trl"),
            "num_train_epochs": 1,
            "learning_rate": RATE,
            "temperature": 1.0,
            "top_k": 0,
            "generation_kwargs": {"suppress_tokens": [AutoProcessor.from_pretrained(self.shape.model).image_token_id]},
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "logging_steps": 10_000,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }

    def _parts(self, rows: list[Any]) -> dict[str, Any]:
        from datasets import Dataset, Image
        from peft import LoraConfig
        from sightline_trainer.dpo.decoder import adapted
        from sightline_trainer.sections import Lora
        from transformers import AutoModelForImageTextToText, AutoProcessor

        data = Dataset.from_dict(
            {
                "prompt": [[{"role": "user", "content": row.prompt}] for row in rows],
                "image": [str(row.images[0]) for row in rows],
            }
        ).cast_column("image", Image())
        lora, model = Lora(), AutoModelForImageTextToText.from_pretrained(self.shape.model)
        return {
            "model": model,
            "reward_funcs": ClipReward(self.shape.clip),
            "train_dataset": data,
            "processing_class": AutoProcessor.from_pretrained(self.shape.model),
            "peft_config": LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                target_modules=adapted(model, lora.target_modules),
                task_type="CAUSAL_LM",
            ),
        }


def _answers_only(trainer: type) -> type:
    """The trainer, with a forward that computes logits only at the answer's positions."""

    class AnswersOnly(trainer):  # type: ignore[misc, valid-type]
        def _forward(
            self, model: Any, prompt_ids: Any, prompt_mask: Any, ids: Any, mask: Any, vision_inputs: Any = None
        ) -> Any:
            import torch

            output = model(
                torch.cat((prompt_ids, ids), dim=1),
                attention_mask=torch.cat((prompt_mask, mask), dim=1),
                logits_to_keep=ids.shape[1] + 1,
                **(vision_inputs or {}),
            )
            values = output.logits[:, :-1]
            return torch.take_along_dim(values.log_softmax(dim=-1), ids.unsqueeze(-1), dim=2).squeeze(-1)

    return AnswersOnly
