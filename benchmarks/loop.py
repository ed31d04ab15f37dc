"""Compare one online iteration of ours with TRL's OnlineDPOTrainer and GRPOTrainer, at two shapes.

    make bench-loop
    python benchmarks/loop.py --quick               less of everything, five minutes
    python benchmarks/loop.py --only 576 --rounds 3

- **playground**: its LVLM (1.3 M parameters) and CLIP, 640 prompts, answers of at most 64 tokens.
- **576**: a LLaVA of 14 M random weights with 576 image tokens and a vocabulary of 32,000 (llava.py), 48 prompts,
  answers of 32 tokens. The reward is a random CLIP with open_clip's vocabulary, so that answers do not tie.

Both sides do the same work: the same model, LoRA, prompts, K = 2 samples at temperature 1, the same CLIP as reward,
steps with the same number of pairs, one epoch. TRL samples, scores and trains batch by batch in one process, with CLIP
in the same process. Ours uses the services (sampler, scorer with Triton, each with one torch thread) and ends with a
published policy whose arrival is proved. All processes count. Startup counts on neither side (services; TRL's trainer),
but our update loads the model in each iteration, and that counts. No cache holds anything of a turn's prompts.
Each turn is the first iteration of a run, so that ours may take the reference's log-probs from the sampler
(`dpo.reference.from_sampler`); "computed" is ours by default, with a forward pass for them, as in any later iteration.
GRPOTrainer at K = 8 trains on all eight answers, ours at K = 8 on one pair of them; it is listed for scale.

Wall clock is compared with the faster of TRL on one thread and on all cores; ours keeps one thread per service. "Ahead"
means `sampling.staleness: 1`: the next iteration is sampled while this one trains. Its figure is the mean of three
iterations of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import ROOT, Row, Sample, interleave, ratio, write
from loop_trl import BETA, RATE, Peers, Shape

PLAYGROUND = ROOT / "playground/weights"
AHEAD = 3  # iterations of a run that samples ahead
SHAPES = ("playground", "576")
ONLINE = "TRL's experimental OnlineDPOTrainer"


def pool(scratch: Path, prompts: int, turn: object) -> Path:
    """The prompts and images of a turn, new to all caches."""
    from sightline_playground.export import export

    directory = scratch / f"train-{turn}"
    if not directory.exists():
        export(directory, split="align", count=prompts, seed=1 + len(list(scratch.glob("train-*"))))
    return directory


@dataclass
class Ours:
    """Iterations of ours at one shape, each the first of a new run.

    Attributes:
        shape: the sizes.
        scratch: for pools and runs.
        at: addresses of sampler and scorer.
        pairs: what each iteration trained on, by kind of run.
    """

    shape: Shape
    scratch: Path
    at: tuple[str, str]
    pairs: dict[str, list[int]] = field(default_factory=dict)

    def recipe(self, candidates: int, turn: int, *, ahead: bool, computed: bool) -> Any:
        """The recipe without filters: every prompt whose samples differ gives a pair, as in TRL. The sampler's
        log-probs are the reference's (`dpo.reference.from_sampler`), unless all are computed."""
        from sightline_trainer.recipe import Recipe

        iterations = AHEAD if ahead else 1
        of_its_own = {2: "", 8: "k8-"}[candidates] + ("ahead-" if ahead else "") + ("computed-" if computed else "")
        train = pool(self.scratch, iterations * self.shape.prompts, f"{of_its_own}{turn}")
        return Recipe.model_validate(
            {
                "name": "bench-loop",
                "model": str(self.shape.model),
                "iterations": iterations,
                "threads": 1,
                "seed": turn,
                "data": {
                    "train": str(train),
                    "test": str(self.scratch / "test"),
                    "prompts_per_iteration": self.shape.prompts,
                },
                "sampling": {
                    "address": self.at[0],
                    "candidates": candidates,
                    "max_tokens": self.shape.tokens,
                    "max_in_flight": 64,
                    "staleness": int(ahead),
                },
                "reward": {"address": self.at[1]},
                "filters": {},
                "dpo": {
                    "beta": BETA,
                    "learning_rate": RATE,
                    "batch_size": self.shape.batch,
                    "reference": {"from_sampler": not computed},
                },
                "evaluation": {"prompts": 1, "greedy_prompts": 0, "questions": 0, "diverse_prompts": 0},
            }
        )

    def iterations(
        self, name: str, candidates: int, turns: range, *, ahead: bool = False, computed: bool = False
    ) -> Iterator[None]:
        """One after another: sample, score, pair, update, publish."""
        from sightline_trainer.loop import Loop
        from sightline_trainer.runs import RunDirectory

        made_of = self.pairs.setdefault(name, [])
        for turn in turns:
            wanted = self.recipe(candidates, turn, ahead=ahead, computed=computed)
            run = RunDirectory(self.scratch / f"ours-{name}-{turn}")
            run.open(wanted)
            loop = Loop(wanted, run, lambda event: None)
            version = before = 0
            for iteration in range(1, wanted.iterations + 1):
                sampled_by = before if wanted.sampling.staleness else version
                before, (version, made) = version, loop._iterate(iteration, version, sampled_by)
            made_of.append(made)
            yield


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer prompts, one round")
    parser.add_argument("--only", choices=SHAPES, help="measure only this shape")
    parser.add_argument("--prompts", type=int, help="prompts of an iteration (default: 640 for playground, 48 for 576)")
    parser.add_argument("--rounds", type=int, help="counted turns of each arm")
    parser.add_argument("--no-grpo", action="store_true", help="leave out GRPOTrainer, which takes half of the time")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    rounds = options.rounds or (1 if options.quick else 2)
    with tempfile.TemporaryDirectory(prefix="sightline-bench-loop-") as name:
        rows = []
        for each in [options.only] if options.only else SHAPES:
            scratch = Path(name) / each
            scratch.mkdir()
            warm_up = not (options.quick and each == "576")  # a turn takes minutes, the first one seconds more
            shape = _shape(each, scratch, options.prompts, quick=options.quick)
            rows += measure(shape, each, rounds, scratch, warm_up=warm_up, grpo=not options.no_grpo)
    write("-".join(["loop", *([options.only] if options.only else []), *(["quick"] if options.quick else [])]), rows)


def _shape(name: str, scratch: Path, prompts: int | None, *, quick: bool) -> Shape:
    if name == "playground":
        most = prompts or (192 if quick else 640)
        return Shape(PLAYGROUND / "llava", PLAYGROUND / "clip", tokens=64, prompts=most, batch=16)
    import llava

    model = llava.make(scratch / "llava")
    return Shape(model, _clip_of_words(scratch / "clip"), tokens=32, prompts=prompts or (16 if quick else 48), batch=8)


def _clip_of_words(directory: Path) -> Path:
    """The playground's CLIP with random weights and open_clip's own vocabulary."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = json.loads((PLAYGROUND / "clip/open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"].pop("hf_tokenizer_name")
    config["model_cfg"]["text_cfg"]["vocab_size"] = 49408
    directory.mkdir()
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    state = open_clip.CLIP(**config["model_cfg"]).state_dict()
    state["text_projection"].neg_()  # or every cosine is below 0, where a CLIPScore is 0 and two answers tie
    save_file({name: value.contiguous() for name, value in state.items()}, directory / "open_clip_model.safetensors")
    return directory


def measure(
    shape: Shape, name: str, rounds: int, scratch: Path, *, warm_up: bool = True, grpo: bool = True
) -> list[Row]:
    """All rows of one shape."""
    import torch
    from sightline_cli.processes import Processes
    from sightline_playground.export import export
    from sightline_trainer.pools import open_pool

    torch.set_num_threads(1)
    export(scratch / "test", split="test", count=8, seed=100)
    turns = range(rounds + warm_up)
    small = name == "playground"
    with Processes(scratch / "services") as processes:
        processes.start("sampler", [f"engine.model={shape.model}", "engine.threads=1"])
        processes.start(
            "scorer",
            [f"models.clip.source=local-dir:{shape.clip}", "triton.threads=1", "triton.start_timeout_seconds=900"],
        )
        at = processes.wait("sampler", seconds=600).grpc, processes.wait("scorer", seconds=600).grpc
        ours, peers = Ours(shape, scratch, at), Peers(shape, scratch)
        pools = [open_pool(str(pool(scratch, shape.prompts, turn)), scratch / "images") for turn in turns]
        rows = [pool.draw(shape.prompts, iteration=1, seed=0) for pool in pools]
        steps: list[int] = []

        def trained(trainers: Iterator[Any], threads: int = 1) -> Callable[[], None]:
            def turn() -> None:
                trainer = next(trainers)
                torch.set_num_threads(threads)
                trainer.train()
                torch.set_num_threads(1)
                steps.append(trainer.state.global_step)

            return turn

        made = {
            "ours": ours.iterations("2", 2, turns),
            "theirs": iter([peers.online(each) for each in rows]),
            "ours, all computed": ours.iterations("computed", 2, turns, computed=True),
            "ours at K = 8": ours.iterations("8", 8, turns),
            "theirs on all cores": iter([peers.online(each) for each in rows]),
        }
        arms: dict[str, Callable[[], object]] = {
            "ours": lambda: next(made["ours"]),
            "theirs": trained(made["theirs"]),
            "ours, all computed": lambda: next(made["ours, all computed"]),
            "ours at K = 8": lambda: next(made["ours at K = 8"]),
            "theirs on all cores": trained(made["theirs on all cores"], os.cpu_count() or 1),
        }
        if small:
            ahead = ours.iterations("ahead", 2, turns, ahead=True)
            arms |= {
                "ours ahead": lambda: next(ahead),
            }
        else:
            arms["their best"] = trained(iter([peers.online(each, best=True) for each in rows]))
            if grpo:
                arms["GRPO"] = trained(iter([peers.grpo(each) for each in rows]))
        # The services are children.
        samples = interleave(arms, rounds=rounds, warmup=int(warm_up), pids=lambda: [os.getpid()])
    equal = {
        "prompts": shape.prompts,
        "pairs": ours.pairs["2"][-1],
        "updates": -(-ours.pairs["2"][-1] // shape.batch),
        "updates_of_trl": steps[0],
    }
    return (_playground_rows if small else _large_rows)(samples, equal, ours.pairs)


def _quicker(samples: dict[str, list[Sample]]) -> tuple[str, dict[str, Any]]:
    arm = min("theirs", "theirs on all cores", key=lambda arm: statistics.median(one.wall for one in samples[arm]))
    return arm, {"trl": arm.replace("theirs", "").strip() or "on one thread"}


def _playground_rows(samples: dict[str, list[Sample]], equal: dict[str, Any], pairs: dict[str, list[int]]) -> list[Row]:
    cpu, detail = ratio(samples["theirs"], samples["ours"])
    arm, plain = _quicker(samples)
    wall, wall_detail = ratio(samples[arm], samples["ours"], "wall")
    each = [Sample(one.wall / AHEAD, one.cpu / AHEAD) for one in samples["ours ahead"]]
    ahead, ahead_detail = ratio(samples[arm], each, "wall")
    eight, eight_detail = ratio(samples["ours at K = 8"], samples["ours"])
    detail, eight_detail = {**detail, **equal}, {**eight_detail, "pairs": pairs["8"][-1]}
    wall_detail, ahead_detail = {**wall_detail, **plain, **equal}, {**ahead_detail, **plain, **equal}
    return [
        Row("trl_online_over_ours", cpu, "ratio", "higher", 1.4, ONLINE, detail),
        Row("trl_online_over_ours_wall", wall, "ratio", "higher", None, ONLINE, wall_detail),
        Row("trl_online_over_ours_ahead_wall", ahead, "ratio", "higher", None, ONLINE, ahead_detail),
        Row("ours_k8_over_k2", eight, "ratio", "lower", None, "ours at K = 2", eight_detail),
        _computed("trl_online_over_ours_computed", samples),
    ]


def _computed(name: str, samples: dict[str, list[Sample]]) -> Row:
    value, detail = ratio(samples["theirs"], samples["ours, all computed"])
    return Row(name, value, "ratio", "higher", None, ONLINE, detail)


def _large_rows(samples: dict[str, list[Sample]], equal: dict[str, Any], pairs: dict[str, list[int]]) -> list[Row]:
    cpu, detail = ratio(samples["theirs"], samples["ours"])
    best, best_detail = ratio(samples["their best"], samples["ours"])
    arm, plain = _quicker(samples)
    wall, wall_detail = ratio(samples[arm], samples["ours"], "wall")
    best_wall, best_wall_detail = ratio(samples["their best"], samples["ours"], "wall")
    at_best = f"{ONLINE}, logits of answer positions only"
    rows = [
        Row("trl_online_over_ours_576", cpu, "ratio", "higher", 4.0, ONLINE, {**detail, **equal}),
        Row("trl_online_over_ours_576_wall", wall, "ratio", "higher", None, ONLINE, {**wall_detail, **plain, **equal}),
        Row("trl_best_online_over_ours_576", best, "ratio", "higher", 2.0, at_best, {**best_detail, **equal}),
        Row("trl_best_online_over_ours_576_wall", best_wall, "ratio", "higher", None, at_best, best_wall_detail),
    ]
    rows.append(_computed("trl_online_over_ours_576_computed", samples))
    if "GRPO" in samples:
        grpo, grpo_detail = ratio(samples["GRPO"], samples["ours at K = 8"])
        grpo_wall, grpo_wall_detail = ratio(samples["GRPO"], samples["ours at K = 8"], "wall")
        eight, all_eight = {"pairs": pairs["8"][-1]}, "TRL's GRPOTrainer at K = 8, which trains on all eight"
        rows += [
            Row("grpo_over_ours_576_k8", grpo, "ratio", "higher", None, all_eight, {**grpo_detail, **eight}),
            Row(
                "grpo_over_ours_576_k8_wall",
                grpo_wall,
                "ratio",
                "higher",
                None,
                all_eight,
                {**grpo_wall_detail, **eight},
            ),
        ]
    return rows


if __name__ == "__main__":
    main()
