"""Loop: one online iteration on the playground, ours against TRL's experimental OnlineDPOTrainer.

    make bench-loop
    python benchmarks/loop.py --prompts 128 --rounds 3

Equal work: the same model, LoRA, prompts, K = 2 samples of at most 64 tokens at temperature 1, the playground's CLIP as
reward, batches of 16 pairs, one epoch. TRL samples, scores and trains batch by batch in one process, where CLIP runs
in process too; ours goes through the services (sampler, scorer with Triton, each with one torch thread) and ends with
a published policy whose arrival is proved. All processes are charged. Left out on both sides is what is there before:
services, and TRL's trainer; ours loads the model for its update in each iteration, and that counts. TRL's gradient
checkpointing and bf16, on by default, are off: on a CPU they would only cost it. No cache knows a turn's prompts.

Wall clock is against the quicker of TRL on one thread and on all cores; ours keeps its one thread a service. "Ahead" is
`sampling.staleness: 1`: the next iteration is sampled while this one trains; the mean of three iterations of one run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import ROOT, Row, Sample, interleave, ratio, write

MODEL = ROOT / "playground/weights/llava"
CLIP = ROOT / "playground/weights/clip"
BATCH, TOKENS, BETA, RATE = 16, 64, 0.1, 8e-4
AHEAD = 3  # iterations of a run that samples ahead


def pool(scratch: Path, prompts: int, turn: object) -> Path:
    """The prompts and images of a turn, new to everybody."""
    from sightline_playground.export import export

    directory = scratch / f"train-{turn}"
    if not directory.exists():
        export(directory, split="align", count=prompts, seed=1 + len(list(scratch.glob("train-*"))))
    return directory


def recipe(scratch: Path, prompts: int, candidates: int, turn: int, at: tuple[str, str], ahead: bool = False) -> Any:
    """Ours, without filters: every prompt whose samples differ gives a pair, as in TRL."""
    from sightline_trainer.recipe import Recipe

    iterations = AHEAD if ahead else 1
    of_its_own = {2: "", 8: "k8-"}[candidates] + ("ahead-" if ahead else "")
    train = pool(scratch, iterations * prompts, f"{of_its_own}{turn}")
    return Recipe.model_validate(
        {
            "name": "bench-loop",
            "model": str(MODEL),
            "iterations": iterations,
            "threads": 1,
            "seed": turn,
            "data": {
                "train": str(train),
                "test": str(scratch / "test"),
                "prompts_per_iteration": prompts,
            },
            "sampling": {
                "address": at[0],
                "candidates": candidates,
                "max_tokens": TOKENS,
                "max_in_flight": 64,
                "staleness": int(ahead),
            },
            "reward": {"address": at[1]},
            "filters": {},
            "dpo": {"beta": BETA, "learning_rate": RATE, "batch_size": BATCH},
            "evaluation": {"prompts": 1, "greedy_prompts": 0, "questions": 0, "diverse_prompts": 0},
        }
    )


def our_iterations(recipes: list[Any], work: Path, pairs: list[int]) -> Iterator[None]:
    """Iterations of ours, each the first of a new run: sample, score, pair, update, publish."""
    from sightline_trainer.loop import Loop
    from sightline_trainer.runs import RunDirectory

    for number, wanted in enumerate(recipes):
        run = RunDirectory(work / f"ours-{wanted.sampling.candidates}-{wanted.iterations}-{number}")
        run.open(wanted)
        loop = Loop(wanted, run, lambda event: None)
        version = before = 0
        for iteration in range(1, wanted.iterations + 1):
            sampled_by = before if wanted.sampling.staleness else version
            before, (version, made) = version, loop._iterate(iteration, version, sampled_by)
        pairs.append(made)
        yield


class ClipReward:
    """The playground's CLIP in process, as a reward function of TRL: cosines of captions with their images."""

    __name__ = "clip"

    def __init__(self) -> None:
        import open_clip

        name = f"local-dir:{CLIP}"
        self._model, _, self._preprocess = open_clip.create_model_and_transforms(name)
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(name)

    def __call__(self, prompts: Any, completions: Any, image: list[Any], **rest: Any) -> list[float]:
        import torch

        half = len(image) // 2  # the images come once for each of the two samples
        with torch.inference_mode():
            pixels = torch.stack([self._preprocess(each.convert("RGB")) for each in image[:half]])
            images = self._model.encode_image(pixels, normalize=True).repeat(2, 1)
            texts = self._tokenizer([completion[0]["content"] for completion in completions])
            return list((images * self._model.encode_text(texts, normalize=True)).sum(-1).tolist())


def trl_trainer(rows: list[Any], work: Path) -> Any:
    """TRL's trainer for one iteration."""
    from datasets import Dataset, Image
    from peft import LoraConfig
    from sightline_trainer.dpo.decoder import adapted
    from sightline_trainer.sections import Lora
    from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    lora, processor = Lora(), AutoProcessor.from_pretrained(MODEL)
    data = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": row.prompt}] for row in rows],
            "image": [str(row.images[0]) for row in rows],
        }
    ).cast_column("image", Image())
    model = AutoModelForImageTextToText.from_pretrained(MODEL)
    trainer = OnlineDPOTrainer(
        model=model,
        reward_funcs=ClipReward(),
        args=OnlineDPOConfig(
            output_dir=str(work / "trl"),
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=RATE,
            beta=BETA,
            max_new_tokens=TOKENS,
            temperature=1.0,
            top_k=0,
            generation_kwargs={"suppress_tokens": [processor.image_token_id]},
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            logging_steps=10_000,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=data,
        processing_class=processor,
        peft_config=LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=adapted(model, lora.target_modules),
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, default=640, help="as in an iteration of the recipes")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory(prefix="sightline-bench-loop-") as scratch:
        write("loop", measure(options.prompts, options.rounds, Path(scratch)))


def measure(prompts: int, rounds: int, scratch: Path) -> list[Row]:
    """All rows."""
    import torch
    from sightline_cli.processes import Processes
    from sightline_playground.export import export
    from sightline_trainer.pools import open_pool

    torch.set_num_threads(1)
    export(scratch / "test", split="test", count=8, seed=100)
    turns = range(rounds + 1)  # the first one warms up
    with Processes(scratch / "services") as processes:
        processes.start("sampler", [f"engine.model={MODEL}", "engine.threads=1"])
        processes.start(
            "scorer", [f"models.clip.source=local-dir:{CLIP}", "triton.threads=1", "triton.start_timeout_seconds=900"]
        )
        at = processes.wait("sampler", seconds=600).grpc, processes.wait("scorer", seconds=600).grpc
        pairs: dict[str, list[int]] = {"2": [], "8": [], "ahead": []}
        wanted = {
            "2": [recipe(scratch, prompts, 2, turn, at) for turn in turns],
            "8": [recipe(scratch, prompts, 8, turn, at) for turn in turns],
            "ahead": [recipe(scratch, prompts, 2, turn, at, ahead=True) for turn in turns],
        }
        ours = {name: our_iterations(recipes, scratch, pairs[name]) for name, recipes in wanted.items()}
        pools = [open_pool(str(pool(scratch, prompts, turn)), scratch / "images") for turn in turns]
        rows = [pool.draw(prompts, iteration=1, seed=0) for pool in pools for _ in range(2)]
        trainers = iter([trl_trainer(one, scratch) for one in rows])
        steps: list[int] = []

        def theirs(threads: int) -> None:
            trainer = next(trainers)
            torch.set_num_threads(threads)
            trainer.train()
            torch.set_num_threads(1)
            steps.append(trainer.state.global_step)

        arms: dict[str, Callable[[], object]] = {
            "ours": lambda: next(ours["2"]),
            "theirs": lambda: theirs(1),
            "ours at K = 8": lambda: next(ours["8"]),
            "theirs on all cores": lambda: theirs(os.cpu_count() or 1),
            "ours ahead": lambda: next(ours["ahead"]),
        }
        samples = interleave(arms, rounds=rounds, pids=lambda: [os.getpid()])  # the services are children
    against = "TRL's experimental OnlineDPOTrainer"
    made = pairs["2"][-1]
    equal = {"prompts": prompts, "pairs": made, "updates": -(-made // BATCH), "updates_of_trl": steps[-1]}
    cpu, detail = ratio(samples["theirs"], samples["ours"])
    quicker = min("theirs", "theirs on all cores", key=lambda arm: statistics.median(one.wall for one in samples[arm]))
    wall, wall_detail = ratio(samples[quicker], samples["ours"], "wall")
    each = [Sample(one.wall / AHEAD, one.cpu / AHEAD) for one in samples["ours ahead"]]
    ahead, ahead_detail = ratio(samples[quicker], each, "wall")
    eight, eight_detail = ratio(samples["ours at K = 8"], samples["ours"])
    eight_detail["pairs"] = pairs["8"][-1]
    plain = {"trl": quicker.replace("theirs", "").strip() or "on one thread", **equal}
    return [
        Row("trl_online_over_ours", cpu, "ratio", "higher", 2.0, against, {**detail, **equal}),
        Row("trl_online_over_ours_wall", wall, "ratio", "higher", None, against, {**wall_detail, **plain}),
        Row("trl_online_over_ours_ahead_wall", ahead, "ratio", "higher", None, against, {**ahead_detail, **plain}),
        Row(
            "ours_k8_over_k2", eight, "ratio", "lower", None, "ours at K = 2", {**eight_detail, "pairs": pairs["8"][-1]}
        ),
    ]


if __name__ == "__main__":
    main()
