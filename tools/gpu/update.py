"""Compare our update with TRL's at 576:64, through `train()`.

LLaVA-1.5-7B's shape runs with one and four pairs per prompt, with checkpointing on and off, Qwen2.5-VL-7B's with one
pair per prompt. The arms run one after another, each on its own model, which is released afterwards. A step's time is
the interval between the ends of two steps, so collating and copying count.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import llava
import models
import report
import torch
from datasets import Dataset, Image, List
from peft import LoraConfig
from sightline_trainer.dpo.callbacks import Begin
from sightline_trainer.dpo.collator import PairCollator
from sightline_trainer.dpo.decoder import adapted
from sightline_trainer.dpo.family import Family
from sightline_trainer.dpo.fused_layers import fuse_layers, liger
from sightline_trainer.dpo.setup import make_trainer
from sightline_trainer.recipe import Recipe
from transformers import AutoProcessor, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

RESPONSE = 64
STEPS = 6
ARMS = ("ours", "trl_best", "trl_default", "ours_unchecked")


class Job:
    """A batch of pairs, and trainers for it.

    Args:
        to: the report, for the device and the size.
        scratch: a directory.
        pairs: in a batch.
        prompts: over which they are spread.
        layers: of the model; None for all.
        dtype: of the model.
        qwen: Qwen2.5-VL's shape in place of LLaVA's.
    """

    def __init__(
        self,
        to: report.Report,
        scratch: Path,
        *,
        pairs: int,
        prompts: int,
        dtype: torch.dtype,
        layers: int | None = None,
        qwen: bool = False,
    ) -> None:
        self.to, self.scratch, self.dtype = to, scratch, dtype
        words = models.vocabulary(dry=to.dry)
        self.steps = 2 if to.dry else STEPS
        self.config: Any
        if qwen:  # 24 x 24 of its tokens are 672 pixels a side
            self.processor = models.qwen_processor(scratch / "processor", words)
            self.config, side = models.qwen_config(dry=to.dry, layers=layers), 112 if to.dry else 672
        else:
            self.processor = llava.make(scratch / "processor", vocabulary=words)
            self.config, side = models.llava_config(dry=to.dry, layers=layers), 336
        processor, response = AutoProcessor.from_pretrained(self.processor), 8 if to.dry else RESPONSE
        self.pairs = _pairs(processor, pairs, prompts, response, side, words)
        self.count = pairs

    def recipe(self, *, shared: bool, checkpointing: bool) -> Recipe:
        """Our recipe; every epoch has the same batch."""
        return Recipe.model_validate(
            {
                "name": "gpu", "model": str(self.processor), "threads": torch.get_num_threads(),
                "data": {"train": "-", "test": "-"},
                "dpo": {
                    "batch_size": self.count, "epochs": self.steps, "shared_prefix": shared, "learning_rate": 1e-5,
                    "dtype": "bfloat16" if self.dtype == torch.bfloat16 else "float32",
                    "gradient_checkpointing": checkpointing,
                },
            }
        )  # fmt: skip

    def trainer(self, *, shared: bool, checkpointing: bool, device: str = "") -> Any:
        """Our trainer. With a `device` it is built as on a CPU, and the caller moves the model."""
        if not device:
            load = lambda *_: self.model()  # noqa: E731
            return make_trainer(
                self.recipe(shared=shared, checkpointing=checkpointing), self.pairs, previous=None,
                work=self.scratch / "ours", seed=0, load=load,
            )  # fmt: skip
        if not hasattr(self, "_whole"):
            self._whole = models.build(self.config, "cpu", torch.float32)
        with patch("torch.cuda.is_available", return_value=False):
            made = make_trainer(
                self.recipe(shared=shared, checkpointing=checkpointing), self.pairs, previous=None,
                work=self.scratch / "ours", seed=0, load=lambda *_: copy.deepcopy(self._whole).requires_grad_(True),
            )  # fmt: skip
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in made.model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.02, generator=generator)
        return made

    def theirs(self, *, best: bool, checkpointing: bool) -> DPOTrainer:
        """TRL's DPOTrainer as it comes, or at its best: each image processed once per pair, Liger's kernels."""
        lora = self.recipe(shared=False, checkpointing=checkpointing).dpo.lora
        processor = AutoProcessor.from_pretrained(self.processor)
        pairs = self.pairs if best else self.pairs.select_columns(["images", "prompt", "chosen", "rejected"])
        if best:
            pairs = pairs.add_column("pair_id", list(range(len(pairs)))).cast_column(
                "images", List(Image(decode=False))
            )
        on_cpu = self.to.device == "cpu"
        model = self.model()
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(
                output_dir=str(self.scratch / "theirs"), per_device_train_batch_size=self.count, max_length=None,
                num_train_epochs=self.steps, learning_rate=1e-5, bf16=not on_cpu, use_cpu=on_cpu,
                activation_checkpointing=checkpointing, report_to="none", disable_tqdm=True, logging_steps=1,
                remove_unused_columns=False, dataloader_pin_memory=not on_cpu, save_strategy="no",
            ),
            train_dataset=pairs, processing_class=processor,
            data_collator=PairCollator(Family(model, processor)) if best else None,
            peft_config=LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, task_type="CAUSAL_LM",
                target_modules=adapted(model, lora.target_modules),
            ),
        )  # fmt: skip
        kernels = liger()
        if best and kernels is not None and not on_cpu:
            fuse_layers(trainer.model.get_base_model().get_decoder(), kernels)
        trainer.remove_callback(PrinterCallback)
        return trainer

    def checkpoint(self) -> Path:
        """Write the whole model with its processor; return its directory."""
        whole = self.scratch / "model"
        shutil.copytree(self.processor, whole, ignore=shutil.ignore_patterns("*.safetensors*"))
        self.model().save_pretrained(whole)
        report.free()
        return whole

    def model(self) -> Any:
        """A new model on the device."""
        return models.build(self.config, self.to.device, self.dtype).requires_grad_(True)


def _pairs(processor: Any, count: int, prompts: int, response: int, pixels: int, words: int) -> Dataset:
    rows = []
    for number in range(count):
        prompt = number * prompts // count
        question = llava.prompt(5 + prompt % 2)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        rendered = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        row: dict[str, Any] = {
            "prompt_id": f"p{prompt}", "images": [{"bytes": llava.picture(prompt, pixels), "path": f"{prompt}.jpg"}],
            "prompt": [{"role": "user", "content": question}], "rendered_prompt": rendered,
        }  # fmt: skip
        for at, side in enumerate(("chosen", "rejected"), 2 * number):
            generator = torch.Generator().manual_seed(at)
            ids = torch.randint(100, words, (response,), generator=generator).tolist()
            row |= {f"{side}_ids": ids, side: [{"role": "assistant", "content": " ".join(f"w{i}" for i in ids)}]}
        rows.append(row)
    return Dataset.from_list(rows).cast_column("images", List(Image()))


def roomy() -> Path | None:
    """The directory in memory if 14 GB fit there; None: use the default."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 40 << 30 else None


def loss_and_gradients(trainer: Any, device: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the whole batch on a device by the trainer's own loss, reference log-probs included."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    batch = {name: value.to(torch.device(device)) for name, value in batch.items()}
    model = trainer.model.to(device).train()
    loss = trainer._compute_loss(model, batch, False)
    loss.backward()
    found = {n: p.grad.float().cpu() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss), found


class _Timed(TrainerCallback):
    """Records when each step ended, and the peak memory after the first step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        report.sync()
        self.ends.append(time.perf_counter())
        if len(self.ends) == 1 and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def step(self) -> float:
        """Median seconds between the ends of two steps, without the first step."""
        return report.median([b - a for a, b in zip(self.ends[:-1], self.ends[1:], strict=True)])


def flops(job: Job, tokens: list[tuple[int, list[int]]], labels: int) -> float:
    """FLOPs of one step of a LoRA update without recomputing: forward, and the gradients of activations.

    Args:
        job: for the shape.
        tokens: for each prefix its length and its branches'.
        labels: positions that go to the head.
    """
    text = job.config.text_config
    width, layers = text.hidden_size, text.num_hidden_layers
    head = width // text.num_attention_heads
    linear = layers * (
        2 * width * width + 2 * width * head * text.num_key_value_heads + 3 * width * text.intermediate_size
    )
    total = sum(prefix + sum(branches) for prefix, branches in tokens)
    seen = sum(p * p / 2 + sum(b * p + b * b / 2 for b in branches) for p, branches in tokens)
    return float(2 * 2 * linear * total + 3 * 4 * width * layers * seen + 2 * 2 * width * text.vocab_size * labels)


def work(to: report.Report) -> None:
    """All arms."""
    one, four = ((1, 2), (4, 1)) if to.dry else ((1, 8), (4, 4))
    for (each, prompts), qwen in ((one, False), (four, False), (one, True)):
        name = "_qwen2_5_vl" if qwen else "" if each == 1 else f"_pairs{each}"
        with tempfile.TemporaryDirectory() as scratch:
            job = Job(to, Path(scratch), pairs=each * prompts, prompts=prompts, dtype=to.dtype, qwen=qwen)
            compare(job, ("ours", "trl_best") if name else ARMS, name, each, prompts)


def compare(job: Job, arms: Sequence[str], name: str, each: int, prompts: int) -> None:
    """A row for each arm, and ours beside TRL's."""
    to = job.to
    found = {}
    for arm in arms:
        with to.part(f"update_{arm}{name}"):
            found[arm] = _measured(to, job, arm, name, each, prompts)
    for arm in ("trl_best", "trl_default"):
        if arm in found and "ours" in found:
            target = {"": 2.5, "_pairs4": 5.0}.get(name) if arm == "trl_best" else None
            to.row(
                f"{arm}_over_ours{name}", found[arm]["seconds"] / found["ours"]["seconds"], "ratio", "higher",
                target, "TRL's DPOTrainer, bf16, checkpointing on in both", pairs=job.count,
            )  # fmt: skip
    if "trl_best" in found and "ours" in found:
        ours, theirs = found["ours"], found["trl_best"]
        over = ours["above"] / theirs["above"] if to.device == "cuda" else 0.0  # nothing is known on a CPU
        to.row(
            f"peak_memory_over_trl{name}", over, "ratio", "lower", 0.6,
            "TRL at its best, above the model's weights", ours_gib=ours["peak"], trl_gib=theirs["peak"],
        )  # fmt: skip


def _measured(to: report.Report, job: Job, arm: str, name: str, each: int, prompts: int) -> dict[str, float]:
    checkpointing = arm != "ours_unchecked"
    ours = arm.startswith("ours")
    report.free()
    began = time.monotonic()
    trainer = (
        job.trainer(shared=True, checkpointing=checkpointing)
        if ours
        else job.theirs(best=arm == "trl_best", checkpointing=checkpointing)
    )
    timed = _Timed()
    begin = Begin(trainer, lambda done, total: None) if ours else None
    if begin is not None:
        trainer.add_callback(begin)
    trainer.add_callback(timed)
    weights = torch.cuda.memory_allocated() / 2**30 if to.device == "cuda" else 0.0
    made = time.monotonic() - began
    trainer.train()
    peak = torch.cuda.max_memory_allocated() / 2**30 if to.device == "cuda" else 0.0
    response = 8 if to.dry else RESPONSE
    row = job.pairs[0]
    prefix = len(
        Family(trainer.model, trainer.processing_class).process(row["rendered_prompt"], row["images"], "x").ids
    )
    branches = [response - 1] * (2 * each)
    packed = [(prefix, branches)] * prompts
    rows = [(prefix, [response])] * (2 * each * prompts)
    step, labels = timed.step(), 2 * each * prompts * response
    useful = flops(job, packed if ours else rows, labels)
    mfu = useful / step / to.peak_tflops() / 1e12
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    to.row(
        f"update_{arm}{name}", job.count / step, "pairs/s", pairs=job.count, prefix=prefix,
        seconds=round(step, 4), steps=[round(b - a, 4) for a, b in zip(timed.ends, timed.ends[1:], strict=False)],
        mfu=round(mfu, 4), tflop_a_step=round(useful / 1e12, 2), peak_gib=round(peak, 2), weights_gib=round(weights, 2),
        checkpointing=checkpointing, made_seconds=round(made, 1), loss=losses[:1] + losses[-1:],
        reference_seconds=begin.reference_seconds if begin else 0.0, shared=ours,
    )  # fmt: skip
    if ours:
        to.row(f"update_mfu{name}" + ("" if checkpointing else "_unchecked"), mfu, "share", "higher", 0.45,
               f"the card's bf16 product, {to.peak_tflops():.0f} TFLOP/s; recomputing does not count")  # fmt: skip
    return {"seconds": step, "peak": peak, "above": peak - weights}


if __name__ == "__main__":
    report.run("update", work)
