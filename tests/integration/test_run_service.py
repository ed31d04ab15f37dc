"""RunService over a real channel, in a separate process, with a real scorer and sampler behind it."""

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from running import Services, small_recipe
from sightline.errors import AlreadyExists, InvalidInput, NotFound, PreconditionFailed
from sightline.runs import RunClient
from sightline_chassis.server import Addresses
from sightline_cli.processes import Processes

pytestmark = pytest.mark.slow


@pytest.fixture
def trainer(tmp_path: Path, services: Services, playground: Path) -> Iterator[tuple[Processes, Addresses]]:
    with Processes(tmp_path / "trainer") as processes:
        known = allowing(services, playground)
        processes.start("trainer", [f"runs={tmp_path / 'runs'}", "recipes=recipes", "page_size=2", *known])
        yield processes, processes.wait("trainer")


def allowing(services: Services, playground: Path) -> list[str]:
    """Settings that allow a trainer to run `recipe`."""
    return [f"addresses=['{services.scorer}', '{services.sampler}']", f"data_roots=[{playground}]"]


def recipe(services: Services, playground: Path, **values: Any) -> str:
    return yaml.safe_dump(small_recipe(services, playground, iterations=1, **values))


def test_a_run_is_started_once_watched_to_its_end_and_listed(
    trainer: tuple[Processes, Addresses], services: Services, playground: Path, tmp_path: Path
) -> None:
    with RunClient(trainer[1].grpc) as client:
        text = recipe(services, playground)
        run = client.start(recipe_text=text, request_id="one", run_id="first")
        assert client.start(recipe_text=text, request_id="one").id == run.id == "first"
        with pytest.raises(AlreadyExists):
            client.start(recipe_text=text, request_id="two", run_id="first")
        events = list(client.watch(run.id))
        assert [event.event for event in events] == list(range(len(events)))
        assert events[-1].stage == "end"
        late = list(client.watch(run.id, from_event=len(events) - 2))
        assert [event.event for event in late] == [len(events) - 2, len(events) - 1]
        done = client.get(run.id)
        assert (done.state, done.iteration, done.recipe, done.error) == ("succeeded", 1, "small", "")
        rows = json.loads((tmp_path / "runs/first/metrics.json").read_text())
        assert done.policy_version == rows[-1]["policy_version"]
        metrics = urllib.request.urlopen(f"http://{trainer[1].metrics}/metrics").read().decode()
        assert 'grpc_server_handled_total{grpc_code="OK"' in metrics
        assert "sightline_trainer_policy_version" in metrics


def test_bad_requests_get_the_right_status_and_the_service_goes_on(
    trainer: tuple[Processes, Addresses], services: Services, playground: Path
) -> None:
    with RunClient(trainer[1].grpc) as client:
        with pytest.raises(NotFound, match=r"known are .*\bclip_dpo\b"):
            client.start(recipe_name="no-such")
        with pytest.raises(InvalidInput, match=r"dpo\.betta"):
            client.start(recipe_text=recipe(services, playground), overrides=["dpo.betta=1"])
        with pytest.raises(InvalidInput, match="run_id"):
            client.start(recipe_text=recipe(services, playground), run_id="../elsewhere")
        with pytest.raises(NotFound):
            client.get("no-such")
        with pytest.raises(NotFound):
            list(client.watch("no-such"))
        assert list(client.list()) == []


def test_a_failed_run_says_why_and_the_next_one_runs(
    trainer: tuple[Processes, Addresses], services: Services, playground: Path
) -> None:
    nowhere = str(playground / "nowhere")
    with RunClient(trainer[1].grpc) as client:
        with pytest.raises(PreconditionFailed, match="there is no model /no/such/model"):
            client.start(recipe_text=recipe(services, playground, model="/no/such/model"), run_id="refused")
        bad = client.start(recipe_text=recipe(services, playground), run_id="bad", overrides=[f"data.train={nowhere}"])
        stopped = client.start(recipe_text=recipe(services, playground), run_id="queued")
        client.stop(stopped.id)
        good = client.start(recipe_text=recipe(services, playground), run_id="good")
        list(client.watch(good.id))
        assert client.get(bad.id).state == "failed"
        assert nowhere in client.get(bad.id).error
        assert client.get(bad.id).reason
        assert client.get(stopped.id).state == "stopped"
        assert client.get(good.id).state == "succeeded"
        assert [run.id for run in client.list()] == ["good", "queued", "bad"]  # two pages


def test_a_killed_trainer_comes_back_to_its_run(
    trainer: tuple[Processes, Addresses], services: Services, playground: Path, tmp_path: Path
) -> None:
    processes, addresses = trainer
    with RunClient(addresses.grpc) as client:
        run = client.start(recipe_text=recipe(services, playground), run_id="killed")
        for event in client.watch(run.id):
            if event.stage == "sample" and event.done > 2:
                break
    os.kill(json.loads((tmp_path / "trainer/trainer.json").read_text())["pid"], signal.SIGKILL)
    processes.wait_end("trainer")
    processes.start("trainer", [f"runs={tmp_path / 'runs'}", *allowing(services, playground)])
    with RunClient(processes.wait("trainer").grpc) as client:
        assert [event.stage for event in client.watch(run.id)][-1] == "end"
        assert client.get(run.id).state == "succeeded"


def test_a_running_run_is_stopped_at_once_and_resumed_to_its_end(
    trainer: tuple[Processes, Addresses], services: Services, playground: Path
) -> None:
    with RunClient(trainer[1].grpc) as client:
        run = client.start(recipe_text=recipe(services, playground), run_id="stopped")
        for event in client.watch(run.id):
            if event.stage == "sample":
                client.stop(run.id, now=True)
                break
        events = list(client.watch(run.id))  # ends with the run
        assert client.get(run.id).state == "stopped"
        assert "pair" not in {event.stage for event in events}
        assert client.resume(run.id).state == "queued"
        after = list(client.watch(run.id, from_event=len(events)))
        assert after[0].event == len(events)
        assert after[-1].stage == "end"
        assert client.get(run.id).state == "succeeded"
        with pytest.raises(PreconditionFailed, match="are done"):
            client.resume(run.id)
        with pytest.raises(NotFound):
            client.resume("no-such")


def test_a_graceful_stop_finishes_the_stage(
    trainer: tuple[Processes, Addresses], services: Services, playground: Path, tmp_path: Path
) -> None:
    with RunClient(trainer[1].grpc) as client:
        run = client.start(recipe_text=recipe(services, playground), run_id="graceful")
        for event in client.watch(run.id):
            if event.stage == "sample":
                client.stop(run.id)
                break
        stages = [event.stage for event in client.watch(run.id)]
        assert client.get(run.id).state == "stopped"
        assert (stages[-1], "update" in stages) == ("pair", False)
        assert (tmp_path / "runs/graceful/iterations/0001/pairs.json").exists()


def test_reflection_lists_the_services(trainer: tuple[Processes, Addresses], services: Services) -> None:
    for address, name in (
        (trainer[1].grpc, "sightline_trainer.v1.RunService"),
        (services.scorer, "sightline_scorer.v1.ScorerService"),
        (services.sampler, "sightline_sampler.v1.SamplerService"),
    ):
        with grpc.insecure_channel(address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
            assert name in {service.name for service in answer.list_services_response.service}
