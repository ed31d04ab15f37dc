"""The console answers callers with its token and shows what the runs' files contain."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_server import serving_app
from field import controls
from sightline.runs import MetricChange, RunComparison
from sightline_cli.console.app import console
from sightline_cli.console.source import RunsHere
from sightline_cli.console.told import compared
from sightline_trainer.report.verdict import verdict

RECIPE = "{name: a, model: m, data: {train: a, test: b}, iterations: 2}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for name in ("one", "two"):
        (root / name).mkdir()
        (root / name / "recipe.yaml").write_text(
            RECIPE if name == "one" else RECIPE.replace("iterations: 2", "seed: 5")
        )
        (root / name / "run.json").write_text('{"state": "running", "created": 5}')
    (root / "nothing").mkdir()
    return root


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with serving_app(console(RunsHere(root), "secret")) as url:
        yield url


@pytest.fixture(scope="module")
def page(url: str) -> Iterator[httpx.Client]:
    """A client that opened the printed address."""
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/", params={"token": "secret"}).status_code == 200
        yield client


@pytest.mark.field
@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        *controls(
            (["127.0.0.1:{port}"], 200),
            (["localhost:{port}"], 200),
            (["LOCALHOST:{port}"], 200),
            (["localhost"], 200),
            (["[::1]:{port}"], 200),
            (["127.0.0.1:8080"], 200),  # through a tunnel
        ),
        (["evil.example:{port}"], 403),
        (["evil.example"], 403),
        (["127.0.0.1.evil.example:{port}"], 403),
        (["localhost.evil.example"], 403),
        (["localhost:{port}", "evil.example"], 403),
        ([""], 403),
        ([], 403),
    ],
)
def test_only_this_machines_names_are_answered(url: str, hosts: list[str], status: int) -> None:
    port = httpx.URL(url).port
    connection = http.client.HTTPConnection("127.0.0.1", port or 0, timeout=30)
    connection.putrequest("GET", "/api/runs?token=secret", skip_host=True)
    for host in hosts:
        connection.putheader("Host", host.format(port=port))
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status in (status, 400 if status == 403 else status)  # 400: the server itself refuses such a Host
    assert (b"recipe" in body) == (status == 200)
    connection.close()


def test_pages_of_other_sites_begin_nothing(page: httpx.Client, root: Path) -> None:
    body = {"name": "new", "recipe": "clip_dpo"}
    assert page.post("/api/runs", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
    simple = page.post("/api/runs", content=json.dumps(body), headers={"Content-Type": "text/plain"})
    assert simple.status_code == 403  # what a form of another site can send unprompted
    assert not (root / "new").exists()


def test_loopback_needs_the_token_too(url: str, root: Path) -> None:
    """Pages of other sites and programs of other users can reach loopback."""
    for path in ("/", "/api/runs", "/api/runs/one/events", "/report/one", "/console.js"):
        assert httpx.get(url + path).status_code == 403
    body = {"name": "new", "recipe": "clip_dpo"}
    assert httpx.post(f"{url}/api/runs", json=body).status_code == 403
    assert httpx.post(f"{url}/api/runs", json=body, cookies={"sightline_console": "secret"}).status_code == 403
    assert not (root / "new").exists()


def test_the_cookie_is_of_this_console_alone(url: str) -> None:
    set_cookie = httpx.get(url, params={"token": "secret"}).headers["set-cookie"]
    assert set_cookie.startswith(f"sightline_console_{httpx.URL(url).port}=")
    assert "HttpOnly" in set_cookie
    assert "SameSite=strict" in set_cookie  # not shown by requests that another site makes


def test_others_need_the_token(root: Path) -> None:
    app = console(RunsHere(root), "secret", local=False)
    with serving_app(app) as url, httpx.Client(base_url=url) as client:
        assert client.get("/").status_code == 403
        assert client.get("/", params={"token": "wrong"}).status_code == 403
        assert client.get("/", params={"token": "secret"}).status_code == 200
        assert client.get("/api/runs").status_code == 200  # by the cookie
        port = httpx.URL(url).port
        assert client.get("/api/runs", headers={"Host": f"runs.example:{port}"}).status_code == 200


def test_runs_are_listed_with_their_state(page: httpx.Client) -> None:
    runs = {row["id"]: row for row in page.get("/api/runs").json()["runs"]}
    assert set(runs) == {"one", "two"}
    assert runs["one"]["state"] == "stopped", "nobody holds its lease: who ran it was killed"
    assert (runs["one"]["iterations"], runs["one"]["recipe"]) == (2, "a")
    assert page.get("/api/runs/one/row").json() == runs["one"]


@pytest.mark.parametrize("path", ["/api/runs/none", "/api/runs/..%2f..%2fetc", "/report/nothing", "/api/recipes/none"])
def test_what_is_not_there_is_not_found(page: httpx.Client, path: str) -> None:
    answer = page.get(path)
    assert answer.status_code == 404
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("path", ["/api/runs/none/row", "/api/runs/none/events"])
def test_a_run_that_is_not_there_has_no_news(page: httpx.Client, path: str) -> None:
    assert page.get(path).status_code == 404


def test_two_runs_compared_before_they_are_measured(page: httpx.Client) -> None:
    told = page.get("/api/compare/one/two").json()
    assert {row["key"] for row in told["recipe"]} == {"iterations", "seed"}
    assert told["why"] == "one of the two has not been measured yet"


def test_the_verdict_of_a_comparison() -> None:
    cover = MetricChange("cover", 0.8, 0.7, -0.1, -0.2, -0.05, clear=True)
    reward = MetricChange("clip_score", 50.0, 51.0, 1.0, -1.0, 2.0, clear=False)
    told = compared(RunComparison((), (cover, reward), "", ()))
    assert "Clear changes in the second run: Cover lower, 0.800 to 0.700." in told["verdict"]
    assert told["changes"][0]["title"].startswith("Cover")
    assert "No clear difference" in compared(RunComparison((), (reward,), "", ()))["verdict"]


def test_a_form_is_made_of_the_schema(page: httpx.Client) -> None:
    fields = {field["key"]: field for field in page.get("/api/recipes/clip_dpo").json()}
    assert fields["dpo.beta"]["value"] == "0.1"
    assert "number" in fields["dpo.beta"]["type"]
    assert fields["dpo.beta"]["about"]
    assert "filters.gap.min" in fields


def test_the_page_loads_nothing_from_elsewhere(page: httpx.Client) -> None:
    for path in ("/", "/console.css", "/console.js"):
        text = page.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text


BASE = {"iteration": 0, "chair_s": 0.5, "cover": 0.8, "clip_score": 50.0}


def row(**values: float) -> dict[str, float]:
    return {**BASE, "iteration": 1, "chair_s_change_low": -0.4, "chair_s_change_high": -0.2, **values}


@pytest.mark.parametrize(
    ("rows", "counts", "seen"),
    [
        ([BASE], {}, "Nothing to judge yet"),
        ([BASE, row(chair_s=0.2, clip_score=52.0)], {}, "It hallucinates less: CHAIR_s 0.500 to 0.200, cover kept."),
        ([BASE, row(chair_s=0.2, cover=0.7, clip_score=49.0)], {}, "cover lost 0.100"),
        ([BASE, row(clip_score=60.0, chair_s=0.6, chair_s_change_low=0.05, chair_s_change_high=0.1)], {}, "hacking"),
        ([BASE, row(clip_score=60.0, chair_s=0.2, cover=0.6, cover_change_high=-0.1)], {}, "saying less"),
        ([BASE, row(chair_s=0.49, chair_s_change_low=-0.05, chair_s_change_high=0.03)], {}, "No clear change"),
        ([BASE, row(chair_s=0.2)], {1: {"pairs": 100}, 2: {"pairs": 9}}, "Pairs run out: 9"),
        ([BASE, row(chair_s=0.2, kl_to_base=0.001)], {}, "stopped moving"),
        ([BASE, row(chair_s=0.1), row(chair_s=0.3)], {}, "made it worse"),
        ([{"iteration": 0, "clip_score": 5.0}, {"iteration": 1, "clip_score": 6.0}], {}, "The reward is up"),
    ],
)
def test_the_verdict(rows: Any, counts: Any, seen: str) -> None:
    assert seen in verdict("running", "", rows, {}, counts)


def test_the_verdict_of_updates_that_change_less_and_less() -> None:
    rows = [BASE, row(chair_s=0.2), row(chair_s=0.2)]
    said = verdict("running", "", rows, {1: {"update_norm": 0.4}, 2: {"update_norm": 0.01}}, {})
    assert said == "The policy stopped moving: the last update changed the weights by 0.01, the first by 0.4 (L2 norm)."
    assert "hallucinates less" in verdict("running", "", rows, {1: {"update_norm": 0.4}, 2: {"update_norm": 0.3}}, {})


def test_the_verdict_of_a_run_that_failed() -> None:
    assert verdict("failed", "DiskFull: no room", [], {}, {}) == "It failed: DiskFull: no room"
