"""Compare the DPO update with TRL's DPOTrainer: CPU seconds, pairs/s, FLOPs and peak memory of one optimiser step.

    python benchmarks/dpo.py                        all shapes: seven CPU minutes
    python benchmarks/dpo.py --quick                576:64 with 1 and 4 pairs, fewer turns
    python benchmarks/dpo.py --shape 576:64 --pairs 1

All arms run by turns (A B C A B C) in one run with the same threads. The model is a random LLaVA with a vocabulary of
32 000, with LoRA on all layers of the language model, in float32 without checkpointing, on a CPU. For a GPU, and the
shape of LLaVA-1.5-7B, see `tools/gpu.sh`.

    trl_default   TRL's DPOTrainer with its own collator and defaults
    trl_best      the same, but it scores only the labelled positions (on a CPU TRL scores all of them)
                  and processes every image and prompt once per pair
    ours          shared prefix, with kept image features and reference log-probs: a step after the first epoch
    ours_cold     the first step: tower and reference pass of the same pairs, with empty caches

A shape is image tokens : response tokens, with 8 tokens of text between. 4 pairs share one prompt and have 8 different
responses (the i-th best against the i-th worst).
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import llava
import torch
from datasets import Dataset, Image, List
from harness import Row, Sample, gemm_rate, interleave, ratio, write
from peft import LoraConfig
from sightline_trainer.dpo.collator import PairCollator
from sightline_trainer.dpo.decoder import adapted
from sightline_trainer.dpo.family import Family
from sightline_trainer.dpo.reference_logprobs import add_reference
from sightline_trainer.dpo.setup import make_trainer
from sightline_trainer.recipe import Recipe
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from trl import DPOConfig, DPOTrainer

DTYPE = torch.float32
SHAPES = ("576:64", "64:64", "256:64", "576:128")
TARGETS = {("576:64", 1): (3.5, 2.2), ("576:64", 4): (6.0, None)}
_TEMPLATE = (
    "{% for m in messages %}{{ 'w10 ' if m['role'] == 'user' else 'w11 ' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}w11 {% endif %}"
)
WORDS = 5  # of the question; with template and begin token there are 8


def make_model(directory: Path, image_tokens: int) -> Path:
    """A random LLaVA whose images are ``image_tokens`` long: six layers of 512."""
    side = 14 * int(image_tokens**0.5)
    with tempfile.TemporaryDirectory() as scratch:
        processor = AutoProcessor.from_pretrained(llava.make(Path(scratch)))
    processor.image_processor = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    processor.chat_template = _TEMPLATE
    vision = CLIPVisionConfig(
        image_size=side, patch_size=14, hidden_size=192, intermediate_size=768,
        num_hidden_layers=4, num_attention_heads=3,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=llava.VOCABULARY, hidden_size=512, intermediate_size=1376,
        num_hidden_layers=6, num_attention_heads=8, max_position_embeddings=4096,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=3, vision_feature_layer=-2, image_seq_length=image_tokens
    )
    LlavaForConditionalGeneration(config).to(DTYPE).save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def make_pairs(processor: Any, count: int, response: int, image_tokens: int) -> Dataset:
    """`count` pairs of one prompt; all responses differ and have the same length."""
    side = 14 * int(image_tokens**0.5)
    question = llava.prompt(WORDS)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    rendered = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    rows = []
    for i in range(count):
        row: dict[str, Any] = {
            "prompt_id": "p", "images": [{"bytes": llava.picture(1, side), "path": "p.jpg"}],
            "prompt": [{"role": "user", "content": question}], "rendered_prompt": rendered,
        }  # fmt: skip
        for number, name in enumerate(("chosen", "rejected"), 2 * i):
            generator = torch.Generator().manual_seed(number)
            ids = torch.randint(100, llava.VOCABULARY, (response,), generator=generator).tolist()
            text = " ".join(f"w{i}" for i in ids)
            row |= {f"{name}_ids": ids, name: [{"role": "assistant", "content": text}]}
        rows.append(row)
    return Dataset.from_list(rows).cast_column("images", List(Image()))


class Arm:
    """One implementation of an optimiser step on the same pairs."""

    def __init__(self, trainer: DPOTrainer, rows: list[dict[str, Any]], *, labelled_only: bool = False) -> None:
        self.trainer = trainer
        self.rows = rows
        self.labelled_only = labelled_only
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1  # normally set by train(), which is not called here
        trainer.model.train()

    def __call__(self) -> float:
        # TRL's collator changes the rows it is given.
        batch = self.trainer.data_collator([dict(row) for row in self.rows])
        with self._scoring():
            loss = self.trainer.training_step(self.trainer.model, batch)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        return float(loss)

    def forward_flops(self) -> float:
        """FLOPs of the loss alone, by torch's counter."""
        batch = self.trainer.data_collator([dict(row) for row in self.rows])
        with FlopCounterMode(display=False) as flops, torch.no_grad(), self._scoring():
            self.trainer.compute_loss(self.trainer.model, self.trainer._prepare_inputs(batch))
        return float(flops.get_total_flops())

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        if not self.labelled_only:
            yield
            return
        with patch("trl.trainer.utils._use_triton", return_value=True):
            yield


class Cold:
    """The reference pass of the same pairs, including the tower."""

    def __init__(self, ours: Arm) -> None:
        self.ours = ours

    def __call__(self) -> None:
        sharing = self.ours.trainer.data_collator.sharing
        assert sharing is not None
        assert sharing.cache is not None
        sharing.cache.clear()
        add_reference(self.ours.trainer, lambda done, total: None)
        self.ours.trainer.model.train()


def theirs(model: Path, pairs: Dataset, work: Path, *, best: bool) -> Arm:
    """TRL's DPOTrainer."""
    lora = Recipe.model_validate(_recipe(model, len(pairs))).dpo.lora
    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=DTYPE)
    arguments = DPOConfig(
        output_dir=str(work), per_device_train_batch_size=len(pairs), max_length=None, bf16=False, use_cpu=True,
        activation_checkpointing=False, report_to="none", disable_tqdm=True, remove_unused_columns=False,
        dataloader_pin_memory=False,
    )  # fmt: skip
    processor = AutoProcessor.from_pretrained(model)
    trainer = DPOTrainer(
        model=loaded, args=arguments, train_dataset=pairs, processing_class=processor,
        data_collator=PairCollator(Family(loaded, processor)) if best else None,
        peft_config=LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, task_type="CAUSAL_LM",
            target_modules=adapted(loaded, lora.target_modules),
        ),
    )  # fmt: skip
    rows = list(pairs)
    if not best:
        rows = [{name: row[name] for name in ("images", "prompt", "chosen", "rejected")} for row in rows]
    return Arm(trainer, rows, labelled_only=best)


def ours(model: Path, pairs: Dataset, work: Path) -> Arm:
    """Our update; reference log-probs are known, and features are kept after the first turn."""
    recipe = Recipe.model_validate(_recipe(model, len(pairs)))
    trainer = make_trainer(recipe, pairs, previous=None, work=work, seed=0)
    arm = Arm(trainer, list(trainer.train_dataset))
    add_reference(trainer, lambda done, total: None)
    trainer.model.train()
    return arm


def _recipe(model: Path, pairs: int) -> dict[str, Any]:
    return {
        "name": "bench", "model": str(model), "threads": torch.get_num_threads(), "data": {"train": "-", "test": "-"},
        "dpo": {"batch_size": pairs, "dtype": "float32"},
    }  # fmt: skip


def measure(work: Callable[[], object]) -> dict[str, float]:
    """FLOPs of one turn, and the peak memory of its tensors above the start, in MiB."""
    gc.collect()
    with FlopCounterMode(display=False) as flops, torch.profiler.profile(profile_memory=True) as profile:
        work()
    held = highest = 0
    events = (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    peak = highest / 2**20
    return {"tflop": flops.get_total_flops() / 1e12, "peak_mib": peak}


def compare(shape: str, count: int, rounds: int) -> list[Row]:
    """All rows of one shape."""
    image_tokens, response = (int(part) for part in shape.split(":"))
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        model = make_model(root / "model", image_tokens)
        pairs = make_pairs(AutoProcessor.from_pretrained(model), count, response, image_tokens)
        arms: dict[str, Arm] = {
            "trl_default": theirs(model, pairs, root / "a", best=False),
            "trl_best": theirs(model, pairs, root / "b", best=True),
            "ours": ours(model, pairs, root / "c"),
        }
        facts = {name: measure(arm) for name, arm in arms.items()}
        needed, rate = 2 * arms["ours"].forward_flops(), gemm_rate()
        work: dict[str, Callable[[], object]] = {**arms, "ours_cold": Cold(arms["ours"])}
        samples = interleave(work, rounds=rounds, warmup=0)
    return [*_rows(shape, count, samples, facts), _bound(shape, count, samples["ours"], needed, max(rate, gemm_rate()))]


def _bound(shape: str, count: int, turns: list[Sample], needed: float, rate: float) -> Row:
    """Our step over the time that a matrix product takes for the FLOPs of any exact method: forward over the shared
    rows, labelled positions alone at the head, and the gradient of the inputs, as much again. LoRA's own FLOPs are not
    counted."""
    took = sorted(turn.cpu for turn in turns)[len(turns) // 2]
    detail = {"cpu_seconds": round(took, 3), "needed_tflop": needed / 1e12, "gemm_gflop_per_second": rate / 1e9}
    name = "" if (shape, count) == ("576:64", 1) else f"_{shape.replace(':', '_')}" + f"_pairs{count}" * (count > 1)
    return Row(f"update_over_bound{name}", took * rate / needed, "ratio", "lower", None, "a matrix product", detail)


def _rows(shape: str, count: int, samples: dict[str, list[Sample]], facts: dict[str, dict[str, float]]) -> list[Row]:
    name = shape.replace(":", "_") + ("" if count == 1 else f"_pairs{count}")
    clock: Any = "cpu"
    targets = TARGETS.get((shape, count), (None, None))
    one_epoch = [
        Sample(a.wall + b.wall, a.cpu + b.cpu)
        for a, b in zip(samples["ours"], samples["ours_cold"], strict=True)
    ]  # fmt: skip
    rows = []
    for arm, target in zip(("trl_default", "trl_best"), targets, strict=True):
        value, detail = ratio(samples[arm], samples["ours"], clock)
        rows.append(Row(f"{arm}_over_ours_{name}", value, "ratio", "higher", target, _AGAINST[arm], detail))
        value, detail = ratio(samples[arm], one_epoch, clock)
        rows.append(
            Row(f"{arm}_over_ours_{name}_first_epoch", value, "ratio", "higher", None, f"{_AGAINST[arm]}; our "
                "tower and reference pass included", detail)
        )  # fmt: skip
        flops = facts[arm]["tflop"] / facts["ours"]["tflop"]
        rows.append(Row(f"{arm}_flops_over_ours_{name}", flops, "ratio", "higher", None, _AGAINST[arm], facts))
    for arm, turns in samples.items():
        middle = sorted(getattr(turn, clock) for turn in turns)[len(turns) // 2]
        detail = {"cpu_seconds": [round(t.cpu, 3) for t in turns], "wall_seconds": [round(t.wall, 3) for t in turns]}
        rows.append(
            Row(f"{arm}_pairs_per_second_{name}", count / middle, f"pairs/{clock} s", "higher", None, "", detail)
        )
    headline = (shape, count) == ("576:64", 1)
    rows.append(
        Row(
            "peak_memory_over_trl" if headline else f"peak_memory_over_trl_{name}",
            facts["ours"]["peak_mib"] / facts["trl_best"]["peak_mib"],
            "ratio", "lower", 1.0 if headline else None, _AGAINST["trl_best"],
            {arm: round(fact["peak_mib"], 1) for arm, fact in facts.items()},
        )
    )  # fmt: skip
    return rows


_AGAINST = {"trl_default": "TRL's DPOTrainer as it comes", "trl_best": "TRL's DPOTrainer at its best"}


def main() -> None:
    """Run the shapes and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help="image tokens : response tokens")
    parser.add_argument("--pairs", type=int, action="append", help="pairs of one prompt in a step")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each arm if it has a target; else 1")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--quick", action="store_true", help="measure only 576:64, with fewer turns")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shapes = arguments.shape or (["576:64"] if arguments.quick else list(SHAPES))
    rows: list[Row] = []
    for shape in shapes:
        for count in arguments.pairs or (1, 4):
            began = time.monotonic()
            rounds = arguments.rounds if (shape, count) in TARGETS and not arguments.quick else 1
            rows += compare(shape, count, rounds)
            print(f"{shape}, {count} pairs: {time.monotonic() - began:.0f} s", flush=True)
            write("dpo", rows)  # keeps what was measured, even if the rest fails


if __name__ == "__main__":
    main()
