"""Check that a GPU gives the same numbers as a CPU: float32, two layers of true width.

Compares the towers, the sampler's log-probs (prefill, then steps on the row cache), and the update's loss and
gradients, with the shared prefix and without.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import models
import report
import torch


def work(to: report.Report) -> None:
    """Compare all three."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False  # on by default: a tower's first layer would be in TF32
    with to.part("parity_towers"):
        _towers(to)
    for family, config in (("llava", models.llava_config), ("qwen2_5_vl", models.qwen_config)):
        with to.part(f"parity_decode_{family}"):
            _decode(to, family, config(dry=to.dry, layers=2))
    with to.part("parity_update"):
        _update(to)


def _towers(to: report.Report) -> None:
    import towers

    for precision in ("fp32", "fp16", "bf16"):
        cpu = towers.clip(to, "cpu", "fp32", layers=2)
        gpu = towers.clip(to, to.device, precision, layers=2)
        pixels = torch.randint(0, 256, (4, 3, cpu[2], cpu[2]), dtype=torch.uint8)
        ids = towers.texts(4)
        with torch.inference_mode():
            apart = []
            for tower, batch in ((0, pixels), (1, ids)):
                here, there = (
                    torch.nn.functional.normalize(
                        pair[tower].encode(pair[tower].prepare(batch).to(device)).float(), dim=-1
                    ).cpu()
                    for pair, device in ((cpu, "cpu"), (gpu, to.device))
                )
                apart.append(float(1 - (here * there).sum(dim=-1).min()))
        limit = 1e-5 if precision == "fp32" else 2e-3
        to.row(
            f"parity_towers_{precision}", max(apart), "1 - cosine", "lower", limit, "float32 on the CPU",
            image=apart[0], text=apart[1],
        )  # fmt: skip


def _decode(to: report.Report, family: str, config: Any) -> None:
    from decode import lane

    found = {}
    whole = models.build(config, "cpu", torch.float32)
    for arm, device in (("cpu", "cpu"), ("gpu", to.device)):
        model = copy.deepcopy(whole).to(device)
        base = models.base(model)
        torch.manual_seed(0)
        a_lane = lane(base, prompts=2, rows=3, tokens=8)
        logits = [a_lane._logits[:6].float().log_softmax(-1).cpu()]
        ids = torch.randint(100, base.vocabulary, (8, 6)).numpy()
        with torch.inference_mode():
            for step in range(6):
                a_lane.sample()
                a_lane._rows.tokens[a_lane._rows.place, a_lane._rows.generated - 1] = ids[step]
                a_lane.forward(model)
                logits.append(a_lane._logits[:6].float().log_softmax(-1).cpu())
        found[arm] = torch.stack(logits)
    apart = (found["cpu"] - found["gpu"]).abs().max().item()
    to.row(f"parity_decode_{family}", apart, "nats", "lower", 1e-3, "float32 on the CPU", tokens=7 * 6)


def _update(to: report.Report) -> None:
    import update

    with tempfile.TemporaryDirectory() as scratch:
        job = update.Job(to, Path(scratch), pairs=2, prompts=1, layers=2, dtype=torch.float32)
        grads: dict[tuple[str, bool], Any] = {}
        for arm, device in (("cpu", "cpu"), ("gpu", to.device)):
            for shared in (False, True):
                trainer = job.trainer(shared=shared, device=device, checkpointing=False)
                grads[arm, shared] = update.loss_and_gradients(trainer, device)
                del trainer
                report.free()
        wanted_loss, wanted = grads["cpu", False]
        for (arm, shared), (loss, found) in grads.items():
            total = sum(float((found[n] - wanted[n]).square().sum()) for n in wanted) ** 0.5
            size = sum(float(w.square().sum()) for w in wanted.values()) ** 0.5
            if (arm, shared) != ("cpu", False):
                to.row(
                    f"parity_update_{'shared' if shared else 'rows'}" + ("_on_cpu" if arm == "cpu" else ""),
                    total / max(size, 1e-30), "relative gradient", "lower", 1e-3, "TRL's rows in float32 on the CPU",
                    loss=loss, loss_on_cpu=wanted_loss,
                )  # fmt: skip


if __name__ == "__main__":
    report.run("parity", work)
