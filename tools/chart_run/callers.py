"""A team without gRPC, which scores a picture through the release's HTTP gateway, as an allowed caller."""

from __future__ import annotations

import base64
import http.client
import io
import json
import ssl

from authority import CALLER_TOKEN
from PIL import Image
from pods import Pod, PodFailed

TEXTS = ["a red square", "a blue circle"]


def score_over_http(gateway: Pod, authority: bytes) -> str:
    """Score a red square at the gateway, over HTTPS with the callers' token; check that it refuses a call without it.

    Raises:
        PodFailed: it let a call in without a token, or did not answer one with it.
    """
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "PNG")
    body = json.dumps({"image": {"base64": base64.b64encode(picture.getvalue()).decode()}, "texts": TEXTS})
    port = next(one["containerPort"] for one in gateway.spec["containers"][0]["ports"])
    context = ssl.create_default_context(cadata=authority.decode())
    context.check_hostname = False  # called at its address, as through a forwarded port

    def post(**headers: str) -> tuple[int, str]:
        connection = http.client.HTTPSConnection(gateway.address, port, timeout=60, context=context)
        try:
            connection.request("POST", "/v1/score", body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    status, said = post()
    if status != 401:
        raise PodFailed(f"{gateway.name} let in a call without a token: {status} {said}")
    status, said = post(Authorization=f"Bearer {CALLER_TOKEN}")
    if status != 200:
        raise PodFailed(f"{gateway.name} answered {status}: {said}\n{gateway.log()}")
    return f"scored: {[text['value'] for text in json.loads(said)['scores']]}"
