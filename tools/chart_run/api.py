"""The part of the cluster's API that the release's own pods call: patch a Deployment; create, read and delete Jobs.

Every call is checked against the Roles of the release: a service account may do only what they allow.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import network
from chassis_certificates import Authority
from containers import Spec

VERBS = {"GET": "get", "PATCH": "patch", "POST": "create", "DELETE": "delete"}
HOST = "kubernetes.default.svc"


class Api:
    """Serves it on the node.

    Args:
        node: runs the requested pods.
        authority: signs its certificate.
        say: called with every call.
    """

    def __init__(self, node: Any, authority: Authority, say: Callable[[str], None]) -> None:
        self._node, self._say = node, say
        self._jobs: dict[str, Spec] = {}
        certificate, key = authority.sign(HOST, names=[HOST]).write(node.directory, "api")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        api = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                size = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                status, answer = api.answer(self.command, self.path, self.headers.get("authorization", ""), body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_DELETE = _any

            def log_message(self, *_: Any) -> None:
                """Said by `say`."""

        server = ThreadingHTTPServer((network.NODE, 443), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def answer(self, method: str, path: str, authorization: str, body: Any) -> tuple[int, Any]:
        """Status and body of a call."""
        parts = path.partition("?")[0].strip("/").split("/")
        group, resource, name = parts[1], parts[5], parts[6] if len(parts) > 6 else ""
        account = authorization.removeprefix("Bearer ")
        allowed = self._may(account, VERBS[method], group, resource, name)
        self._say(f"api: {account} {VERBS[method]}s {resource} {name}: {'allowed' if allowed else 'forbidden'}")
        if not allowed:
            return 403, {"message": f"{account} may not {VERBS[method]} {resource} {name}"}
        if resource == "deployments" and method == "PATCH":
            threading.Thread(target=self._node.roll_out, args=(name, body), daemon=True).start()
            return 200, {}
        if resource == "jobs" and method == "POST":
            return self._make(body)
        if resource == "jobs" and name in self._jobs:
            return 200, self._jobs[name] if method == "GET" else self._jobs.pop(name)
        return 404, {"message": f"no {resource} {name}"}

    def _make(self, job: Spec) -> tuple[int, Any]:
        name = job["metadata"]["name"]
        if name in self._jobs:
            return 409, {"message": "already there"}
        self._jobs[name] = {**job, "status": {}}

        def run() -> None:
            pod = self._node.pod(f"{name}-0", job["spec"]["template"])
            code = pod.run()
            self._say(f"job {name} ended with {code}" + (f":\n{pod.log()}" if code else ""))
            self._node.remove(pod.name)
            kind = "Failed" if code else "Complete"
            self._jobs[name]["status"] = {"conditions": [{"type": kind, "status": "True"}]}

        threading.Thread(target=run, daemon=True).start()
        return 201, self._jobs[name]

    def _may(self, account: str, verb: str, group: str, resource: str, name: str) -> bool:
        bound = {
            binding["roleRef"]["name"]
            for binding in self._node.of_kind("RoleBinding")
            if any(subject["name"] == account for subject in binding["subjects"])
        }
        return any(
            group in rule["apiGroups"]
            and resource in rule["resources"]
            and verb in rule["verbs"]
            and ("resourceNames" not in rule or name in rule["resourceNames"])
            for role in self._node.of_kind("Role")
            if role["metadata"]["name"] in bound
            for rule in role["rules"]
        )


def account_files(directory: Path, account: str, namespace: str, ca: bytes) -> Path:
    """The service account's files in a pod."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (("token", account.encode()), ("namespace", namespace.encode()), ("ca.crt", ca)):
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o444)
    return directory
