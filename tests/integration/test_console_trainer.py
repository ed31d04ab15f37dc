"""`sightline ui --trainer`: the runs of a real trainer service, in the console's API and in a real browser."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from engine_server import serving_app
from running import ROOT, WEIGHTS, Services
from sightline_cli.console.app import console
from sightline_cli.console.service import RunsThere
from sightline_cli.processes import Processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(
    services: Services, playground: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, httpx.Client]]:
    """The console of a trainer service, and a client with its token."""
    root = tmp_path_factory.mktemp("trainer")
    with Processes(root / "log") as processes:
        known = [f"addresses=['{services.scorer}', '{services.sampler}']", f"data_roots=[{playground}]"]
        processes.start("trainer", [f"runs={root / 'runs'}", "recipes=recipes", *known])
        runs = RunsThere(processes.wait("trainer").grpc, {})
        with serving_app(console(runs, "secret")) as url, httpx.Client(base_url=url, timeout=60) as client:
            client.get("/", params={"token": "secret"})
            yield url, client


def small(services: Services, playground: Path) -> list[str]:
    return [
        f"model={WEIGHTS / 'llava'}",
        "iterations=1",
        "threads=1",
        f"data.train={playground / 'train'}",
        f"data.test={playground / 'test'}",
        "data.prompts_per_iteration=24",
        f"sampling.address={services.sampler}",
        "sampling.candidates=4",
        f"reward.address={services.scorer}",
        "reward.source=null",
        "candidates.question_answer=false",
        "evaluation.prompts=24",
    ]


@pytest.mark.timeout(600)
def test_a_run_of_a_service_is_begun_watched_stopped_and_goes_on(
    page: tuple[str, httpx.Client], services: Services, playground: Path
) -> None:
    _, client = page
    body = {"name": "mine", "recipe": "clip_dpo", "overrides": small(services, playground)}
    begun = client.post("/api/runs", json=body)
    assert begun.status_code == 200, begun.text
    streams = [client.stream("GET", "/api/runs/mine/events") for _ in range(12)]  # as many open pages
    opened = [stream.__enter__() for stream in streams]
    assert client.get("/api/runs").json()["runs"][0]["id"] == "mine", "open pages take nothing from others"
    stages: list[str] = []
    for line in opened[0].iter_lines():
        if line.startswith('data: {"'):
            stages.append(json.loads(line.removeprefix("data: "))["stage"])
            if stages[-1] == "sample":
                break
    assert "start" in stages
    for stream in streams:
        stream.__exit__(None, None, None)
    assert client.post("/api/runs/mine/stop", json={}).status_code == 200
    row = until_state(client, "stopped")
    assert row["iterations"] == 1
    assert client.post("/api/runs/mine/resume", json={}).status_code == 200
    until_state(client, "succeeded")
    told = client.get("/api/runs/mine").json()
    assert (told["files"], told["run"]["state"]) == (False, "succeeded")
    assert [row["iteration"] for row in told["rows"]] == [0, 1]
    assert told["curves"]["chair_s"]["title"]
    assert "Nothing to judge" not in told["verdict"]
    assert [(each["version"], each["parent"]) for each in told["policies"]] == [(1, 0)]
    shown = client.get("/api/runs/mine/gallery/1").json()
    assert 0 < len(shown) <= 24
    assert all(each["picture"].startswith("data:image/png;base64,") for each in shown)
    assert all(each[side]["html"] for each in shown for side in ("before", "after"))
    assert "<mark>" in json.dumps(shown), "the truth is known"
    twins = client.get("/api/compare/mine/mine").json()
    assert (twins["recipe"], twins["why"]) == ([], "")
    assert {each["change"] for each in twins["changes"]} == {0.0}
    assert len(twins["pictures"]) == len(shown)
    refused = client.get("/report/mine")
    assert refused.status_code == 400
    assert "sightline ui DIRECTORY" in refused.json()["error"]


def until_state(client: httpx.Client, state: str) -> dict[str, object]:
    end = time.monotonic() + 240
    while (row := client.get("/api/runs/mine/row").json())["state"] != state:
        assert time.monotonic() < end, row
        assert row["state"] != "failed", row
        time.sleep(0.5)
    return dict(row)


@pytest.mark.skipif(not Path("/usr/bin/chromedriver").exists(), reason="no chromedriver")
def test_it_stands_in_the_browser(page: tuple[str, httpx.Client]) -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    from screenshots import browser

    url, _ = page
    with browser(1280, 1000) as driver:
        driver.get(f"{url}/?token=secret#/run/mine")
        end = time.monotonic() + 60
        for place in ("#curves figure", "#gallery .card img"):
            while not driver.find_elements("css selector", place):
                assert time.monotonic() < end, place
                time.sleep(0.3)
        assert not driver.find_element("id", "report").is_displayed()
        assert "v1" in driver.find_element("id", "lineage").text
        assert driver.get_log("browser") == []
