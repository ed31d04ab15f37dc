"""Third-party services over HTTP: outages are waited for, keys stay hidden, unusable URLs are refused at once."""

import asyncio
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sightline.errors import InvalidInput, PreconditionFailed, Unavailable
from sightline.patience import Patience
from sightline_chassis.settings import SettingsError
from sightline_trainer import web_service
from sightline_trainer.recipe import Recipe, load_recipe
from sightline_trainer.web_service import WebService, checked_url

Send = Callable[[BaseHTTPRequestHandler, int], None]
KEY = "sk-secret-123"


@pytest.fixture
def served() -> Iterator[tuple[str, list[Send], list[Any]]]:
    """A service on loopback: its URL, what sends its answers (the last one is repeated), headers that it saw."""
    sends: list[Send] = []
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append(dict(self.headers))
            (sends.pop(0) if len(sends) > 1 else sends[0])(self, len(seen))

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1", sends, seen
    http.shutdown()


def sends(status: int, body: bytes = b"{}", **headers: str) -> Send:
    def send(handler: BaseHTTPRequestHandler, _: int) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def post(url: str, *, key: str = "", timeout: float = 5.0, patience: Patience | None = None) -> Any:
    async def work() -> Any:
        service = WebService(url, "AWAY", timeout, key=key, variable="THE_KEY")
        service._patience = patience or service._patience
        try:
            answer = await service.post({})
            return answer, service.refused(answer, "ONE", "REFUSED", "check it")
        finally:
            await service.close()

    return asyncio.run(work())


def test_a_key_is_shown_to_the_service_and_to_nobody_else(served: Any, caplog: pytest.LogCaptureFixture) -> None:
    url, answers, seen = served
    caplog.set_level("DEBUG")
    answers += [lambda handler, _: sends(401, f"bad key {handler.headers['Authorization']}".encode())(handler, 0)]
    _, error = post(url, key=f" {KEY}\n")  # as files and shells leave it
    assert seen[0]["Authorization"] == f"Bearer {KEY}"
    assert isinstance(error, PreconditionFailed)
    assert str(error).endswith("/v1 answers 401: bad key Bearer ***; check it")
    answers[:] = [sends(401, b"x" * 250 + f" {KEY}".encode() * 20)]  # cut after hiding, never inside a key
    _, error = post(url, key=KEY)
    assert KEY[:6] not in str(error)
    assert "***" in str(error)
    for key in ("sk-sécret", "sk secret", "sk-\nsecret"):
        with pytest.raises(PreconditionFailed, match="THE_KEY contains a character that no key has") as caught:
            post(url, key=key)
        assert (caught.value.reason, "sk" in str(caught.value)) == ("KEY_UNUSABLE", False)
    assert "secret" not in caplog.text


def test_it_waits_as_long_as_the_service_asks(served: Any) -> None:
    url, answers, _ = served
    answers += [sends(429, Retry_After="0.7"), sends(200, b"[4]")]
    began = time.monotonic()
    assert post(url)[0].json() == [4]
    assert time.monotonic() - began >= 0.7


def test_an_answer_that_drips_is_late_and_one_nested_without_end_is_no_json(served: Any) -> None:
    url, answers, _ = served

    def drip(handler: BaseHTTPRequestHandler, _: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        for _ in range(20):  # each piece comes in time
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.1)

    answers += [drip]
    with pytest.raises(Unavailable, match=r"cannot be reached: no answer within 0\.5 s"):
        post(url, timeout=0.5, patience=Patience(tries=1))
    answers[:] = [sends(200, b"[" * 100_000)]
    with pytest.raises(ValueError, match="nested too deeply"):
        post(url)[0].json()


def test_an_answer_is_read_only_so_far(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, answers, _ = served
    monkeypatch.setattr(web_service, "_MOST_BYTES", 1 << 20)
    small, large = gzip.compress(b'"' + b"a" * 1000 + b'"'), gzip.compress(b'"' + b"a" * (50 << 20) + b'"')
    assert len(large) < 1 << 17  # grows when it is decompressed
    answers += [sends(200, small, Content_Encoding="gzip"), sends(200, large, Content_Encoding="gzip")]
    answer, error = post(url)
    assert (len(answer.json()), error) == (1000, None)
    answer, error = post(url)
    assert len(answer.body) == 1 << 20
    assert isinstance(error, InvalidInput)
    assert (error.reason, str(error)) == ("ONE", f"{url} answers with over 1 MiB")
    answers[:] = [sends(200, small[:20], Content_Encoding="gzip"), sends(200, b"not gzip", Content_Encoding="gzip")]
    for _ in range(2):
        with pytest.raises((Unavailable, ValueError)):
            post(url, patience=Patience(tries=1))[0].json()


@pytest.mark.parametrize(
    "url", ["judge:8000/v1", "judge/v1", "ftp://judge/v1", "http:///v1", "http://[::1/v1", "http://judge:99999/v1", ""]
)
def test_what_is_no_url_is_refused_before_any_work(url: str) -> None:
    with pytest.raises(ValueError, match="is not a URL"):
        checked_url(url)
    with pytest.raises(PreconditionFailed) as caught:
        WebService(url, "AWAY", 1.0)
    assert caught.value.reason == "URL_UNUSABLE"


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        ("reward", {"terms": {"ask": {"who": "openai", "model": "m", "templates": {"a": "{answer}"}, "url": "%s"}}}),
        ("reward", {"terms": {"detected": {"by": "http", "there": 0.5, "url": "%s"}}}),
        ("candidates", {"policy": {}, "injected": {"writer": "openai", "model": "m", "url": "%s"}}),
        ("evaluation", {"decoding": {"guidance": {"prompted": {"template": "{objects}", "url": "%s"}}}}),
    ],
)
def test_every_url_of_a_recipe_is_checked_and_its_password_stays_hidden(
    tmp_path: Any, section: str, settings: dict[str, Any]
) -> None:
    def read(url: str) -> Recipe:
        path = tmp_path / "plain.yaml"
        held = {"name": "t", "model": "m", "data": {"train": "a", "test": "b"}, section: settings}
        path.write_text(json.dumps(held).replace("%s", url))
        return load_recipe(path)

    read("http://judge:8000/v1")
    with pytest.raises(SettingsError, match="judge:8000/v1' is not a URL: it must look like http://HOST:PORT/PATH"):
        read("judge:8000/v1")
    with pytest.raises(SettingsError, match="must not contain a name or password") as caught:
        read("http://me:s3cret@judge:8000/v1")
    assert "s3cret" not in str(caught.value)
