"""A launcher that runs the update as a Kubernetes Job (or Kubeflow TrainJob): its pods have the GPUs, this one has
none.

In a recipe:  dpo.launch: [python, -m, sightline_trainer.job, /etc/sightline-job/job.yaml]

The update's own command line follows, as after `accelerate launch`. The template is an object without a name and
without arguments; both are filled in here. The name derives from the command, so that a restarted trainer finds its
predecessor's Job and waits for it. The pod's service account must be allowed to create, get and delete such objects
(the chart's Role). Exit codes: 0 the update is done, 1 it failed or could not be started.
"""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
POLL_SECONDS = 5.0
PATIENCE_SECONDS = 300.0
PLURALS = {"Job": "jobs", "TrainJob": "trainjobs"}


class JobError(Exception):
    """The Job could not be created or has failed; the message says why and what to check."""


@dataclass(frozen=True)
class Api:
    """The cluster's API, from inside a pod."""

    url: str
    token_file: Path
    ca_file: Path | None

    @classmethod
    def in_cluster(cls) -> Api:
        """The API of the cluster that this pod runs in.

        Raises:
            JobError: this is not a pod, or it has no service account token.
        """
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (ACCOUNT / "token").exists():
            raise JobError(
                "this is not a pod with a service account token; run the update here: leave dpo.launch empty"
            )
        return cls(f"https://{host}:{port}", ACCOUNT / "token", ACCOUNT / "ca.crt")

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request.

        Returns:
            The HTTP status and the answer. The token is read each time, since it is rotated.

        Raises:
            OSError: the API could not be reached.
        """
        request = urllib.request.Request(  # noqa: S310 - the address is the cluster's own
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.token_file.read_text().strip()}",
                "Content-Type": "application/json",
            },
        )
        context = ssl.create_default_context(cafile=str(self.ca_file)) if self.ca_file else None
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:  # noqa: S310
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _message(error.read())


def _message(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return {"message": body.decode(errors="replace")[:500]}


def fill(template: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The object to create: the template with a name and the container's arguments.

    Raises:
        JobError: the template is neither a Job nor a TrainJob.
    """
    kind = template.get("kind", "")
    if kind not in PLURALS:
        raise JobError(
            f"the template is a {kind or 'nothing'}, not a Job or TrainJob; fix trainer.update in the chart's values"
        )
    filled: dict[str, Any] = json.loads(json.dumps(template))
    digest = hashlib.sha256(json.dumps([template, list(arguments)], sort_keys=True).encode()).hexdigest()[:16]
    filled["metadata"]["name"] = f"sightline-update-{digest}"
    if kind == "Job":
        filled["spec"]["template"]["spec"]["containers"][0]["args"] = list(arguments)
    else:
        filled["spec"]["trainer"]["args"] = list(arguments)
    return filled


def outcome(found: dict[str, Any]) -> bool | None:
    """Whether a Job or TrainJob succeeded; None while it is running."""
    for condition in found.get("status", {}).get("conditions", []):
        if condition.get("status") == "True":
            if condition["type"] == "Complete":
                return True
            if condition["type"] == "Failed":
                return False
    return None


def run(api: Api, template: dict[str, Any], arguments: Sequence[str], *, poll: float = POLL_SECONDS) -> None:
    """Create the Job, or find an existing one, and wait for its end.

    Raises:
        JobError: it failed, disappeared, may not be created, or the API did not answer for five minutes.
    """
    job = fill(template, arguments)
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    path = f"/apis/{job['apiVersion']}/namespaces/{namespace}/{PLURALS[job['kind']]}"
    status, answer = _patient(api, "POST", path, job, poll)
    if status not in (200, 201, 202, 409):
        raise JobError(f"{job['kind']} {name} was refused ({status}): {answer.get('message', answer)}")
    print(f"{job['kind'].lower()}/{name}: {'found' if status == 409 else 'created'}", file=sys.stderr, flush=True)
    while True:
        status, answer = _patient(api, "GET", f"{path}/{name}", None, poll)
        if status == 404:
            raise JobError(f"{job['kind'].lower()}/{name} disappeared before its end; was it deleted?")
        done = outcome(answer)
        if done:
            return
        if done is False:
            _patient(api, "DELETE", f"{path}/{name}?propagationPolicy=Background", None, poll)
            raise JobError(f"{job['kind'].lower()}/{name} failed: {_why(answer)}")
        time.sleep(poll)


def _why(found: dict[str, Any]) -> str:
    conditions = [c for c in found["status"]["conditions"] if c.get("type") == "Failed"]
    return f"{conditions[0].get('reason', '')}: {conditions[0].get('message', '')}"


def _patient(api: Api, method: str, path: str, body: Any, poll: float) -> tuple[int, Any]:
    """One request, retried while the API is unavailable or overloaded."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            status, answer = api.call(method, path, body)
        except OSError as error:
            status, answer = 503, {"message": str(error)}
        if status not in (429, 500, 502, 503, 504):
            return status, answer
        if time.monotonic() > until:
            raise JobError(f"the cluster's API does not answer ({status}): {answer.get('message', answer)}")
        time.sleep(poll)


def main(arguments: Sequence[str]) -> int:
    """`TEMPLATE ARGUMENT...`"""
    if len(arguments) < 2:
        print("usage: python -m sightline_trainer.job TEMPLATE.yaml ARGUMENT...", file=sys.stderr)
        return 2
    template, *command = arguments
    try:
        run(Api.in_cluster(), yaml.safe_load(Path(template).read_text(encoding="utf-8")), command)
    except (JobError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
