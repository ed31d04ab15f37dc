"""The update as a Job: the calls to the cluster's API, and the handling of its answers."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import find, profile, profile_objects, render
from sightline_trainer import job as job_module
from sightline_trainer.job import Api, JobError, fill, main, run

Answer = tuple[int, dict[str, Any]]
ARGUMENTS = ["-m", "sightline_trainer.dpo", "/runs/r/iterations/0001"]


class Cluster:
    """An API server that stores objects, refuses existing ones, and answers from a script."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.statuses: list[dict[str, Any]] = []
        self.failures: list[int] = []
        self.calls: list[tuple[str, str, str]] = []

    def answer(self, method: str, path: str, token: str, body: dict[str, Any] | None) -> Answer:
        self.calls.append((method, path, token))
        path = path.split("?")[0]
        if self.failures:
            return self.failures.pop(0), {"kind": "Status", "message": "try again"}
        if method == "POST" and body is not None:
            key = f"{path}/{body['metadata']['name']}"
            if key in self.objects:
                return 409, {"kind": "Status", "reason": "AlreadyExists"}
            self.objects[key] = body
            return 201, body
        if path not in self.objects:
            return 404, {"kind": "Status", "reason": "NotFound"}
        if method == "DELETE":
            return 200, self.objects.pop(path)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return 200, {**self.objects[path], "status": status}


@pytest.fixture
def cluster() -> Iterator[tuple[Cluster, Api]]:
    state = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size)) if size else None
            code, answer = state.answer(self.command, self.path, self.headers["Authorization"], body)
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = reply

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state, Api(f"http://127.0.0.1:{server.server_port}", Path("token"), None)
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("token").write_text("secret-1\n")


@pytest.fixture
def template() -> dict[str, Any]:
    """The Job in the chart."""
    text = find(profile_objects("multi-node-tgi"), "ConfigMap", "-trainer-job")["data"]["job.yaml"]
    parsed: dict[str, Any] = yaml.safe_load(text)
    return parsed


def condition(kind: str) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": "True", "reason": "BackoffLimitExceeded", "message": "it fell"}]}


def test_the_job_is_the_charts_with_a_name_and_the_updates_arguments(template: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    filled = fill(template, ARGUMENTS)
    validate.validate(filled, "1.37.0", strict=True)
    container = filled["spec"]["template"]["spec"]["containers"][0]
    assert container["command"][:2] == ["accelerate", "launch"]
    assert container["args"] == ARGUMENTS
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert fill(template, ARGUMENTS)["metadata"] == filled["metadata"], "the same work has the same name"
    assert fill(template, [*ARGUMENTS, "x"])["metadata"] != filled["metadata"]


def test_a_trainjob_gets_its_arguments_too() -> None:
    values = profile("multi-node-tgi")
    values["trainer"]["update"]["kind"] = "trainjob"
    values["trainer"]["gpu"]["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    objects = render(values)
    filled = fill(yaml.safe_load(find(objects, "ConfigMap", "-trainer-job")["data"]["job.yaml"]), ARGUMENTS)
    assert filled["kind"] == "TrainJob"
    assert filled["spec"]["trainer"]["args"] == ARGUMENTS
    # Kubeflow Trainer 2.2 and newer take patches, and no podTemplateOverrides, which the API would drop in silence.
    assert "podTemplateOverrides" not in filled["spec"]
    (patch,) = filled["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert {volume["name"] for volume in pod["spec"]["volumes"]} >= {"runs", "data", "tmp"}
    assert pod["spec"]["tolerations"] == values["trainer"]["gpu"]["tolerations"]


@pytest.mark.parametrize("kind", ["job", "trainjob"])
def test_an_updates_pods_are_those_that_its_network_policy_closes(kind: str) -> None:
    values = profile("multi-node-tgi")
    values["trainer"]["update"]["kind"] = kind
    objects = render(values)
    spec = yaml.safe_load(find(objects, "ConfigMap", "-trainer-job")["data"]["job.yaml"])["spec"]
    if kind == "trainjob":
        (node,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        spec = node["template"]["spec"]
    selector = find(objects, "NetworkPolicy", "-update")["spec"]["podSelector"]["matchLabels"]
    assert selector.items() <= spec["template"]["metadata"]["labels"].items()


def test_an_update_that_would_have_to_download_is_refused_when_it_is_rendered() -> None:
    with pytest.raises(Exception, match="is a hub's name"):
        render({"trainer": {"update": {"kind": "job"}, "runs": {"existingClaim": "runs"}}})


def test_it_waits_for_the_end(cluster: tuple[Cluster, Api], template: dict[str, Any]) -> None:
    state, api = cluster
    state.statuses = [{}, {"active": 1}, condition("Complete")]
    run(api, template, ARGUMENTS, poll=0.01)
    assert [method for method, _, _ in state.calls] == ["POST", "GET", "GET", "GET"]
    assert state.calls[0][1] == "/apis/batch/v1/namespaces/align/jobs"
    assert {token for _, _, token in state.calls} == {"Bearer secret-1"}


def test_a_trainer_that_comes_back_waits_for_the_job_that_is_there(
    cluster: tuple[Cluster, Api], template: dict[str, Any]
) -> None:
    state, api = cluster
    state.statuses = [condition("Complete")]
    run(api, template, ARGUMENTS, poll=0.01)
    run(api, template, ARGUMENTS, poll=0.01)
    assert len(state.objects) == 1


def test_a_failed_job_says_why_and_leaves_its_name_free(cluster: tuple[Cluster, Api], template: dict[str, Any]) -> None:
    state, api = cluster
    state.statuses = [condition("Failed")]
    with pytest.raises(JobError, match="BackoffLimitExceeded: it fell"):
        run(api, template, ARGUMENTS, poll=0.01)
    assert not state.objects


def test_an_api_that_is_away_for_a_while_is_waited_for(cluster: tuple[Cluster, Api], template: dict[str, Any]) -> None:
    state, api = cluster
    state.statuses, state.failures = [condition("Complete")], [503, 429, 500]
    run(api, template, ARGUMENTS, poll=0.01)
    assert len(state.calls) == 5


def test_an_api_that_stays_away_is_given_up(
    cluster: tuple[Cluster, Api], template: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "PATIENCE_SECONDS", 0.05)
    state, api = cluster
    state.failures = [503] * 1000
    with pytest.raises(JobError, match="does not answer"):
        run(api, template, ARGUMENTS, poll=0.01)


def test_what_may_not_be_created_is_said(cluster: tuple[Cluster, Api], template: dict[str, Any]) -> None:
    state, api = cluster
    state.failures = [403]
    with pytest.raises(JobError, match="was refused \\(403\\)"):
        run(api, template, ARGUMENTS, poll=0.01)


def test_a_deleted_job_is_an_error(cluster: tuple[Cluster, Api], template: dict[str, Any]) -> None:
    state, api = cluster
    state.failures = [201]  # created, and gone at once
    with pytest.raises(JobError, match="disappeared before its end"):
        run(api, template, ARGUMENTS, poll=0.01)


def test_outside_a_cluster_it_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, template: dict[str, Any]
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    Path("job.yaml").write_text(yaml.safe_dump(template))
    assert main(["job.yaml", *ARGUMENTS]) == 1
    assert "leave dpo.launch empty" in capsys.readouterr().err
    assert main(["job.yaml"]) == 2
