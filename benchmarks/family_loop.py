"""One family's whole loop on a tiny checkpoint, with real services and mixed photos, and checks of each part.

A loop is whole if a run of two iterations succeeded (sample, score, pair, update, publish with the sampler's proof,
evaluate), its policy was merged into one checkpoint that gives the trainer's log-probs, and its pairs were exported.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import families
import torch
from harness import ROOT

CLIP = ROOT / "playground/weights/clip"
PROMPTS, CANDIDATES, TOKENS = 8, 6, 6
LIMITS = {"float32": 1e-3, "bfloat16": 0.05}
"""Largest difference between two parts of the system, in nats a token."""
TESTED = [(400, 160), (150, 390), (260, 200)]
"""Sizes of the held-out photos."""


class Broken(Exception):
    """A part of the loop failed its check; the message names the part and the difference."""


@dataclass
class Loop:
    """Results of one run of the loop, in nats a token; the gradient's difference is relative to its norm."""

    mode: str
    arrival_gap: float = math.nan
    worst_pair_gap: float = math.nan
    gradient_difference: float = math.nan
    image_matters: float = math.nan
    pairs: int = 0
    facts: dict[str, float] = field(default_factory=dict)


def checkpoint(directory: Path, family: str) -> Path:
    """A tiny checkpoint, with a chat template if the family has none."""
    families.make(directory, family)
    _write_words(directory)
    if template := (families.FAMILIES | families.OTHERS)[family].template:
        (directory / "chat_template.jinja").write_text(template)
    return directory


def _write_words(directory: Path) -> None:
    """Make special tokens as rare as in a trained model's texts.

    If they are a third of the vocabulary or more (SmolVLM's names of rows and columns), random weights write little
    else, and candidates that contain them are left out.
    """
    from sightline_chassis.families.auto import AutoModelForImageTextToText, AutoProcessor

    tokenizer = AutoProcessor.from_pretrained(directory).tokenizer
    added = tokenizer.added_tokens_decoder.items()
    special = [token for token, what in added if what.special and token != tokenizer.eos_token_id]
    if 3 * len(special) < len(tokenizer):
        return
    model = AutoModelForImageTextToText.from_pretrained(directory)
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight.mul_(2.5)
        weight[special] = 0.0
    model.save_pretrained(directory)


def datasets_at(root: Path, *, conversations: bool = False) -> tuple[Path, Path]:
    """Train and test: photos of mixed shapes, portrait and landscape, each with a prompt.

    Args:
        conversations: every third row is a conversation about two photos, with a system prompt and an earlier answer.
    """
    shown = {"train": families.photos(), "test": [families.photo(90 + i, size) for i, size in enumerate(TESTED)]}
    questions = ("describe the picture .", "what is in this picture ?", "describe this star and the circle")
    for name, photos in shown.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        rows = []
        for number, content in enumerate(photos):
            (root / name / f"{number}.jpg").write_bytes(content)
            question = questions[number % len(questions)]
            row = {"id": f"{name}-{number}", "image": f"{number}.jpg", "prompt": question}
            images = [f"{number}.jpg", f"{(number + 1) % len(photos)}.jpg"]
            rows.append(row | _conversation(question, images) if conversations and number % 3 == 0 else row)
        (root / name / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / "train", root / "test"


def _conversation(question: str, images: list[str]) -> dict[str, Any]:
    """A row's images, and the turns before its question."""
    before = [
        {"role": "system", "content": "there is a star ."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is in this picture ?"}]},
        {"role": "assistant", "content": "a red star left of the blue circle ."},
    ]
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    return {"image": images, "prompt": [*before, asked]}


def recipe(model: Path, at: tuple[str, str], data: tuple[Path, Path], mode: tuple[str, str], iterations: int) -> Any:
    """A recipe in which every prompt whose candidates' CLIPScores differ gives a pair (random models write no better).

    Args:
        at: addresses of sampler and scorer.
        mode: `dpo.train` and `dpo.dtype`.
    """
    from sightline_trainer.recipe import Recipe

    return Recipe.model_validate(
        {
            "name": "bench-families",
            "model": str(model),
            "iterations": iterations,
            "threads": 1,
            "data": {"train": str(data[0]), "test": str(data[1]), "prompts_per_iteration": PROMPTS},
            "sampling": {"address": at[0], "candidates": CANDIDATES, "max_tokens": TOKENS},
            "reward": {"address": at[1]},
            "filters": {},
            "dpo": {"train": mode[0], "dtype": mode[1], "batch_size": 4, "epochs": 2, "learning_rate": 2e-3},
            "publication": {"max_probe_gap": LIMITS[mode[1]]},
            "evaluation": {"prompts": len(TESTED), "greedy_prompts": 1, "questions": 0, "diverse_prompts": 1},
        }
    )


def loop(wanted: Any, root: Path) -> Loop:
    """Run the recipe and check its results.

    Raises:
        Broken: a check failed.
        SightlineError: the run failed.
    """
    from sightline_trainer.execute import execute
    from sightline_trainer.runs import RunDirectory

    shutil.rmtree(root, ignore_errors=True)
    mode, run = f"{wanted.dpo.train} {wanted.dpo.dtype}", RunDirectory(root / "run")
    table = execute(wanted, run, lambda event: None)
    if len(table) != wanted.iterations + 1 or not all(math.isfinite(row["clip_score"]) for row in table):
        raise Broken(f"{len(table)} evaluations of {wanted.iterations + 1}, or one without a CLIPScore")
    found, version = Loop(mode), int(table[-1]["policy_version"])
    kept = [run.iteration(number) for number in range(1, wanted.iterations + 1)]
    updates = [json.loads((each / "update.json").read_text()) for each in kept]
    figures = [each["metrics"] for each in updates]
    found.arrival_gap = max(json.loads((each / "publish.json").read_text())["gap"] for each in kept)
    found.worst_pair_gap = max(max(each["rows_gap"], each.get("sampled_gap_max", 0.0)) for each in figures)
    found.image_matters = min(each["image_matters"] for each in figures)
    found.pairs = sum(int(row.get("pairs", 0)) for row in table)
    found.facts = {name: figures[-1][name] for name in ("changed_tensors", "shared_prefix", "sampled_sides")}
    found.facts["iterations"] = wanted.iterations
    found.facts["merged_gap"] = _merged_gap(wanted, run.root, version, updates[-1]["probes"], root)
    limit = LIMITS[wanted.dpo.dtype]
    if not found.facts["merged_gap"] <= limit:
        raise Broken(f"the merged checkpoint is {found.facts['merged_gap']:.2g} nats a token off the trainer's policy")
    exported = _exported(run.root, root / "exported")
    if exported != found.pairs:
        raise Broken(f"{exported} pairs were exported of {found.pairs}")
    if wanted.dpo.dtype == "float32":
        found.gradient_difference = gradient_difference(wanted, kept[0] / "pairs.parquet", root / "gradient")
    return found


def command(*arguments: object) -> None:
    """`sightline ARGUMENTS`, in this process.

    Raises:
        Broken: its exit code is not 0; the message is the end of its output.
    """
    from sightline_cli.main import app
    from typer.testing import CliRunner

    on_term = signal.getsignal(signal.SIGTERM)
    try:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, on_term)  # each command installs its own
    if done.exit_code == 128 + signal.SIGTERM:
        signal.raise_signal(signal.SIGTERM)
    if done.exit_code:
        raise Broken(f"sightline {arguments[0]}: {' '.join(done.output.split())[-300:] or repr(done.exception)}")


def _merged_gap(wanted: Any, run: Path, version: int, probes: list[dict[str, Any]], root: Path) -> float:
    """Largest mean difference a token between the trainer's log-probs of its probes and those that the policy gives as
    one checkpoint (an adapter merged by `sightline policies merge`; a full policy is one), by plain forwards."""
    from sightline.sampler import policy_dirname
    from sightline_chassis.families.auto import AutoModelForImageTextToText, AutoProcessor
    from sightline_trainer.dpo.collator import decoded
    from sightline_trainer.dpo.family import Family
    from sightline_trainer.pairs.build import read_pairs

    whole = run / "policies" / policy_dirname(version)
    if wanted.dpo.train == "lora":
        command("policies", "merge", run, version, "--to", root / "merged")
        whole = root / "merged"
    pairs = {row["prompt_id"]: row for row in read_pairs(run / f"iterations/{wanted.iterations:04d}/pairs.parquet")}
    dtype = getattr(torch, wanted.dpo.dtype)
    model = AutoModelForImageTextToText.from_pretrained(whole, dtype=dtype).eval()
    shown = next((row["rendered_prompt"] for row in pairs.values() if len(row["images"]) == 1), None)
    family, worst = Family(model, AutoProcessor.from_pretrained(whole), shown=shown), 0.0
    for probe in probes:
        pair = pairs[probe["prompt_id"]]
        prompt = family.processing.prompt(pair["rendered_prompt"], [decoded(image) for image in pair["images"]])
        response = torch.tensor(probe["token_ids"])
        inputs: dict[str, Any] = {**prompt.images, **family.processing.continued(prompt.tokens, len(response))}
        inputs = {
            name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
            for name, value in inputs.items()
        }
        ids = torch.cat([prompt.ids, response])[None]
        with torch.no_grad():
            logits = model(**inputs, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        scores = logits[0, -len(response) - 1 : -1].float().log_softmax(-1).gather(-1, response[:, None])[:, 0]
        worst = max(worst, (scores - torch.tensor(probe["logprobs"])).abs().mean().item())
    return worst


def _exported(run: Path, to: Path) -> int:
    """Rows of the dataset that `sightline export` writes, with the images at their places in the prompt."""
    import datasets
    from trl.data_utils import prepare_multimodal_messages

    command("export", run, "--to", to)
    rows = datasets.load_dataset("parquet", data_files=str(to / "data/*.parquet"), split="train")
    for row in rows:
        prepare_multimodal_messages(row["prompt"], row["images"])  # raises where TRL would
    return sum(bool(row["images"]) and all(image.width > 0 for image in row["images"]) for row in rows)


def gradient_difference(wanted: Any, pairs: Path, work: Path) -> float:
    """Of the gradient by the batch as training makes it (packed where the family shares its prefix) and by the same
    pairs one by one in plain rows: the difference's norm over the gradient's."""
    from datasets import Dataset
    from sightline_trainer.dpo.collator import PairCollator
    from sightline_trainer.dpo.reference_logprobs import add_reference
    from sightline_trainer.dpo.setup import make_trainer

    data = Dataset.from_parquet(str(pairs), cache_dir=str(work / "cache"))
    trainer = make_trainer(wanted, data, previous=None, work=work, seed=0)
    add_reference(trainer, lambda done, total: None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # away from the reference, where the adapter's first half has no gradient
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    rows = list(trainer.train_dataset)
    ours = trainer.data_collator
    plain = PairCollator(ours.family, columns=ours.columns)
    plain.reference = ours.reference
    batch = _gradient(trainer, [ours(rows)])
    alone = _gradient(trainer, [plain([row]) for row in rows])
    return ((batch - alone).norm() / alone.norm()).item()


def _gradient(trainer: Any, batches: list[Mapping[str, Any]]) -> torch.Tensor:
    """Gradient of the batches' mean loss, as one vector."""
    trainer.model.train()
    trainer.model.zero_grad()
    for batch in batches:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)) / len(batches)
        loss.backward()
    grown = [each.grad.flatten() for each in trainer.model.parameters() if each.grad is not None]
    return torch.cat(grown)
