"""A loop on several samplers: the pairs of one, whoever is killed meanwhile."""

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from running import WEIGHTS, Services, small_recipe
from sightline.sampler import SamplerClient
from sightline_cli.processes import Processes
from sightline_trainer.events import Event
from sightline_trainer.execute import execute
from sightline_trainer.recipe import Recipe
from sightline_trainer.runs import RunDirectory

SCORES = ("images", "chosen_reward", "rejected_reward", "margin")


def pairs(run: RunDirectory) -> list[dict[str, Any]]:
    """All pairs, without what a batch's last bits change."""
    rows = []
    for path in sorted(run.root.glob("iterations/*/pairs.parquet")):
        rows += [{key: row[key] for key in row if key not in SCORES} for row in pq.read_table(path).to_pylist()]
    return rows


@pytest.mark.slow
def test_pairs_do_not_depend_on_the_samplers_nor_on_one_that_is_killed(
    playground: Path, services: Services, tmp_path: Path
) -> None:
    alone = RunDirectory(tmp_path / "alone")
    execute(Recipe.model_validate(small_recipe(services, playground)), alone, lambda event: None)
    with ExitStack() as stack:
        fleet = [stack.enter_context(Processes(tmp_path / f"sampler-{number}")) for number in range(3)]
        model = [f"engine.model={WEIGHTS / 'llava'}", "engine.threads=1"]
        for one in fleet:
            one.start("sampler", model)
        found = [one.wait("sampler").grpc for one in fleet]
        tree = small_recipe(services, playground)
        tree["sampling"] = {**tree["sampling"], "address": "ipv4:" + ",".join(found)}
        killed: list[str] = []

        def observe(event: Event) -> None:
            """One dies in the first iteration's sampling and comes back, another in the second's and stays away."""
            if event.stage == "sample" and event.done >= 5 and len(killed) < event.iteration:
                member = fleet[len(killed)]
                os.kill(json.loads((member.directory / "sampler.json").read_text())["pid"], signal.SIGKILL)
                member.wait_end("sampler")
                if not killed:
                    member.start("sampler", model, port=int(found[0].rpartition(":")[2]))
                    member.wait("sampler")
                killed.append(member.directory.name)

        run = RunDirectory(tmp_path / "fleet")
        table = execute(Recipe.model_validate(tree), run, observe)
        assert killed == ["sampler-0", "sampler-1"]
        assert pairs(run) == pairs(alone)
        version = int(table[-1]["policy_version"])
        for address in (found[0], found[2]):
            with SamplerClient(address, run_id=run.namespace) as client:
                policy = client.policy()
                assert policy.version == version
                assert policy.arrival is not None
                assert policy.arrival.passed, "proved on each"
