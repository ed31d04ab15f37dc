"""Faults that a run survives, over real services: lost policies, damaged images, non-finite losses, kill -9."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, WEIGHTS, Services, small_recipe
from sightline.errors import InternalError
from sightline.sampler import SamplerClient, verify
from sightline_cli.processes import Processes
from sightline_trainer.events import Event
from sightline_trainer.execute import execute
from sightline_trainer.pairs.build import read_pairs
from sightline_trainer.recipe import Recipe
from sightline_trainer.runs import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHORT = {"prompts": 8, "greedy_prompts": 0, "questions": 0, "diverse_prompts": 0}


def small(services: Services, playground: Path, **values: Any) -> Recipe:
    return Recipe.model_validate(small_recipe(services, playground, **{"evaluation": SHORT, **values}))


def said(run: RunDirectory) -> list[dict[str, Any]]:
    """All pairs, without versions and last bits of rewards."""
    rows = []
    for path in sorted(run.root.glob("iterations/*/pairs.parquet")):
        for row in read_pairs(path):
            rows.append({name: row[name] for name in ("prompt_id", "chosen_ids", "rejected_ids", "iteration", "rule")})
    return rows


def sides(run: RunDirectory, iteration: int) -> set[int]:
    """Versions of the policies that sampled an iteration's pairs."""
    rows = read_pairs(run.iteration(iteration) / "pairs.parquet")
    return set(rows["chosen_policy_version"]) | set(rows["rejected_policy_version"])


def test_sampling_ahead_is_one_policy_behind_and_says_so(services: Services, playground: Path, tmp_path: Path) -> None:
    sampling = {"address": services.sampler, "candidates": 4, "staleness": 1}
    recipe, run, order = (
        small(services, playground, iterations=3, sampling=sampling),
        RunDirectory(tmp_path / "run"),
        [],
    )

    def observe(event: Event) -> None:
        order.append((event.stage, event.iteration))

    versions = [int(row["policy_version"]) for row in execute(recipe, run, observe)]
    assert [sides(run, iteration) for iteration in (1, 2, 3)] == [{0}, {0}, {versions[1]}]
    reported = [json.loads((run.iteration(iteration) / "rollout.json").read_text()) for iteration in (1, 2, 3)]
    assert [each["lag"] for each in reported] == [0, 1, 1]
    assert [each["sampled_by"] for each in reported] == [0, 0, versions[1]]
    assert [each["trained_on"] for each in reported] == versions[:3]
    # The next prompts were sampled before the policy of this iteration was published.
    assert order.index(("sample", 2)) < order.index(("publish", 1))
    assert order.index(("sample", 3)) < order.index(("publish", 2))


def test_damaged_images_cost_their_prompts_and_no_more(services: Services, playground: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(playground / "train", data)
    images = sorted((data / "images").iterdir())
    images[0].write_bytes(images[0].read_bytes()[:80])
    images[1].write_bytes(b"")
    images[2].write_bytes(b"<html>404</html>")
    images[3].unlink()
    paths = {"train": str(data), "test": str(playground / "test"), "prompts_per_iteration": 64}
    recipe, run = small(services, playground, iterations=1, data=paths), RunDirectory(tmp_path / "run")
    assert len(execute(recipe, run, lambda event: None)) == 2
    counts = json.loads((run.iteration(1) / "pairs.json").read_text())
    dropped = [
        each for path in run.root.glob("iterations/0001/dropped/*.json") for each in json.loads(path.read_text())
    ]
    assert len(dropped) == 4
    assert sum(count for reason, count in counts.items() if reason.startswith("prompt_image_")) == 4
    assert counts["prompt_image_file_unreadable"] == 1
    assert any(images[3].name in each["message"] for each in dropped)
    assert len({row["prompt_id"] for row in said(run)}) <= 60


def test_a_damaged_test_image_is_named_and_left_out(services: Services, playground: Path, tmp_path: Path) -> None:
    data = tmp_path / "test"
    shutil.copytree(playground / "test", data)
    image = sorted((data / "images").iterdir())[0]
    image.write_bytes(b"no image")
    paths = {"train": str(playground / "train"), "test": str(data), "prompts_per_iteration": 8}
    run, events = RunDirectory(tmp_path / "run"), list[Event]()
    (row,) = [row for row in map(json.loads, (data / "prompts.jsonl").read_text().splitlines())
              if row["image"].endswith(image.name)]  # fmt: skip
    execute(small(services, playground, iterations=1, data=paths), run, events.append)
    assert run.state()["state"] == "succeeded"
    left_out = json.loads((run.root / "dropped.json").read_text())["data.test"]
    assert left_out["counts"] == {"IMAGE_UNREADABLE": 1}
    assert [each["row"] for each in left_out["rows"]] == [row["id"]]
    assert any(row["id"] in event.message for event in events)
    assert row["id"] not in (run.iteration(1) / "by_image.json").read_text()


def test_a_loss_that_is_not_finite_publishes_nothing(services: Services, playground: Path, tmp_path: Path) -> None:
    dpo = {"learning_rate": 1e30, "batch_size": 2, "max_grad_norm": 1e30, "warmup_ratio": 0.0, "schedule": "constant"}
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(InternalError) as caught:
        execute(small(services, playground, iterations=1, dpo=dpo), run, lambda event: None)
    assert caught.value.reason == "LOSS_NOT_FINITE"
    assert (run.state()["state"], run.state()["reason"]) == ("failed", "LOSS_NOT_FINITE")
    assert not list(run.policies.glob("v*"))
    assert not (run.iteration(1) / "update.json").exists()
    with SamplerClient(services.sampler) as sampler:
        assert sampler.policy().version == 0


def test_policies_are_published_further_than_they_were_trained(
    services: Services, playground: Path, tmp_path: Path
) -> None:
    """ExPO: the sampler's arrival gate compares with the trainer's log-probs of the extrapolated weights."""
    run = RunDirectory(tmp_path / "run")
    execute(small(services, playground, publication={"extrapolate": 0.5, "probes": 4}), run, lambda event: None)
    for iteration in (1, 2):
        arrival = json.loads((run.iteration(iteration) / "publish.json").read_text())
        assert arrival["gap"] < 1e-3 < arrival["moved"]
        policy = run.policies / f"v{arrival['version']:06d}"
        config = json.loads((policy / "adapter_config.json").read_text())
        assert (config["lora_alpha"], config["r"]) == (48, 16)
        assert verify(policy).metrics["extrapolated"] == 0.5


@pytest.mark.parametrize("stage", ["sample", "publish", "evaluate"])
def test_a_sampler_that_lost_the_policy_is_given_it_again(
    services: Services, playground: Path, tmp_path: Path, stage: str
) -> None:
    """After kill -9 in the second iteration the new sampler has only the base model."""
    undisturbed = RunDirectory(tmp_path / "undisturbed")
    execute(small(services, playground), undisturbed, lambda event: None)
    with Processes(tmp_path / "services") as processes:
        model = [f"engine.model={WEIGHTS / 'llava'}", "engine.threads=1"]
        processes.start("sampler", model)
        address = processes.wait("sampler").grpc
        killed: list[Event] = []

        def observe(event: Event) -> None:
            before = "update" if stage == "publish" else stage
            if event.iteration == 2 and event.stage == before and not killed and (event.done > 1 or event.metrics):
                if stage == "publish" and not event.metrics:
                    return
                killed.append(event)
                os.kill(json.loads((tmp_path / "services/sampler.json").read_text())["pid"], signal.SIGKILL)
                processes.wait_end("sampler")
                processes.start("sampler", model, port=int(address.rsplit(":", 1)[1]))

        run = RunDirectory(tmp_path / "run")
        table = execute(small(Services(services.scorer, address, {}), playground), run, observe)
        assert killed
        assert len(table) == 3
        with SamplerClient(address) as sampler:
            assert sampler.policy().version == table[-1]["policy_version"]
    assert said(run) == said(undisturbed)


def test_a_policy_that_was_not_put_in_place_is_when_the_run_goes_on(
    services: Services, playground: Path, tmp_path: Path
) -> None:
    """As after a kill between writing update.json and renaming the policy."""
    recipe, run = small(services, playground, iterations=1), RunDirectory(tmp_path / "run")
    version = int(execute(recipe, run, lambda event: None)[-1]["policy_version"])
    place = run.policies / f"v{version:06d}"
    digest = (place / "manifest.json").read_bytes()
    place.rename(run.policies / f".{place.name}")
    for name in ("publish.json", "evaluation.json"):
        (run.iteration(1) / name).unlink()
    with SamplerClient(services.sampler) as sampler:
        sampler.activate(0)
    seconds = json.loads((run.iteration(1) / "seconds.json").read_text())["seconds"]
    table = execute(recipe, run, lambda event: None)
    assert table[-1]["policy_version"] == version
    assert table[-1]["seconds"] > seconds
    assert (place / "manifest.json").read_bytes() == digest


def test_a_disk_that_is_full_ends_the_run_and_it_goes_on_when_there_is_room(
    services: Services, playground: Path, tmp_path: Path
) -> None:
    """The kernel first refuses files over 300 KiB, such as the policy's, then accepts them."""
    recipe = small(services, playground, iterations=1)
    program = (
        "import json, resource, signal, sys; from pathlib import Path\n"
        "from sightline_trainer.execute import execute; from sightline_trainer.recipe import Recipe\n"
        "from sightline_trainer.runs import RunDirectory; import sightline_trainer.loop, sightline_trainer.dpo.launch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300 << 10, resource.RLIM_INFINITY))\n"
        "execute(Recipe.model_validate_json(sys.argv[1]), RunDirectory(Path(sys.argv[2])), lambda event: None)\n"
    )
    run = RunDirectory(tmp_path / "run")
    ended = subprocess.run(
        [sys.executable, "-c", program, recipe.model_dump_json(), str(run.root)], capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "free some, then resume the run" in ended.stderr
    assert (run.state()["state"], run.state()["reason"]) == ("failed", "DISK_FULL")
    assert not list(run.policies.glob("v*"))
    table = execute(recipe, run, lambda event: None)
    assert len(table) == 2


@pytest.mark.timeout(5400)
@pytest.mark.parametrize(("service", "kills", "seed"), [("trainer", 10, 1), ("sampler", 4, 1), ("triton", 4, 1)])
def test_kills_at_random_moments_leave_the_pairs_as_they_are(
    service: str, kills: int, seed: int, tmp_path: Path
) -> None:
    reported = tmp_path / "rows.json"
    flags = ["--services", service, "--kills", str(kills), "--seed", str(seed), "--json", str(reported)]
    command = [sys.executable, str(ROOT / "tools/chaos.py"), *flags, "--scratch", str(tmp_path / "chaos")]
    subprocess.run(command, check=True)
    (row,) = json.loads(reported.read_text())
    assert row["kills"] >= kills
    assert row["pairs"] > 0
    assert row["pairs_equal"]
    assert row["versions_unique"]
    assert row["errors"] == []
