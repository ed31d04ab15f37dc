"""Images by URI: only allowed ones are fetched, and none from internal addresses."""

import asyncio
import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from field import controls
from scorer_models import encoded, picture
from sightline.errors import DeadlineExceeded, InvalidInput, NotFound, PermissionDenied, SightlineError, Unavailable
from sightline_scorer.fetch import Fetcher, is_public
from sightline_scorer.settings import FetchSettings, ScorerLimits

IMAGE = encoded(picture())


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path."""

    def do_GET(self) -> None:
        answers: dict[str, Callable[[], None]] = {
            "/image.png": lambda: self._answer(200, IMAGE),
            "/unsized": lambda: self._answer(200, IMAGE, sized=False),
            "/large": lambda: self._answer(200, bytes(5000)),
            "/large-unsized": lambda: self._answer(200, bytes(5000), sized=False),
            "/lies": lambda: self._answer(200, IMAGE, length=len(IMAGE) + 100),
            "/moved": lambda: self._answer(302, b"", location="http://169.254.169.254/latest"),
            "/zipped": lambda: self._answer(200, IMAGE, encoding="gzip"),
            "/broken": lambda: self._answer(503, b""),
            "/forbidden": lambda: self._answer(403, b""),
            "/drip": self._drip,
            "/drip-headers": self._drip_headers,
        }
        answers.get(self.path, lambda: self._answer(404, b""))()

    def _answer(
        self,
        status: int,
        body: bytes,
        *,
        sized: bool = True,
        length: int | None = None,
        location: str = "",
        encoding: str = "",
    ) -> None:
        self.send_response(status)
        if sized:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        if location:
            self.send_header("Location", location)
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        self.wfile.write(body)

    def _drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)

    def _drip_headers(self) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.0 200 OK\r\n")
            for number in range(100):
                self.wfile.write(b"X-%d: y\r\n" % number)
                self.wfile.flush()
                time.sleep(0.1)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


def fetch(uri: str, limits: ScorerLimits | None = None, **settings: Any) -> bytes:
    fetcher = Fetcher(FetchSettings(**settings), limits or ScorerLimits())
    try:
        return asyncio.run(fetcher.fetch(uri))
    finally:
        fetcher.close()


def inside(port: int, **settings: Any) -> dict[str, Any]:
    """Settings that allow the test's own server."""
    return {"hosts": ("localhost", "127.0.0.1"), "http": True, "ports": (port,), "private_addresses": True, **settings}


def refusal(uri: str, **settings: Any) -> SightlineError:
    with pytest.raises(SightlineError) as caught:
        fetch(uri, **settings)
    return caught.value


@pytest.mark.parametrize("path", ["image.png", "unsized"])
def test_an_allowed_image_is_fetched(port: int, path: str) -> None:
    assert fetch(f"http://localhost:{port}/{path}", **inside(port)) == IMAGE


def test_nothing_is_fetched_by_default(port: int) -> None:
    for uri in (f"http://localhost:{port}/image.png", "https://example.org/a.png", "file:///etc/passwd"):
        error = refusal(uri)
        assert isinstance(error, PermissionDenied)
        assert error.reason == "IMAGE_URI_OFF"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://other.example/a", "IMAGE_URI_HOST_REFUSED"),
        ("http://localhost.evil.example/a", "IMAGE_URI_HOST_REFUSED"),
        ("http://evillocalhost/a", "IMAGE_URI_HOST_REFUSED"),
        ("http://127.1/a", "IMAGE_URI_HOST_REFUSED"),
        ("http://2130706433/a", "IMAGE_URI_HOST_REFUSED"),
        ("http://0x7f000001/a", "IMAGE_URI_HOST_REFUSED"),
        ("http://[::1]/a", "IMAGE_URI_HOST_REFUSED"),
        ("http://localhost:1/a", "IMAGE_URI_PORT_REFUSED"),
        ("http://localhost/a", "IMAGE_URI_PORT_REFUSED"),
        ("http://user:secret@localhost/a", "IMAGE_URI_INVALID"),
        ("http://localhost:port/a", "IMAGE_URI_INVALID"),
        ("http:///a", "IMAGE_URI_INVALID"),
        ("http://localhost/a b", "IMAGE_URI_INVALID"),
        ("http://localhost/\r\nHost: x", "IMAGE_URI_INVALID"),
        ("ftp://localhost/a", "IMAGE_URI_SCHEME_REFUSED"),
        ("gopher://localhost/a", "IMAGE_URI_SCHEME_REFUSED"),
        ("file:///etc/passwd", "IMAGE_URI_SCHEME_REFUSED"),
        ("/etc/passwd", "IMAGE_URI_SCHEME_REFUSED"),
    ],
)
def test_what_is_not_allowed_is_refused(port: int, uri: str, reason: str) -> None:
    assert refusal(uri, **inside(port)).reason == reason


def test_plain_http_must_be_allowed(port: int) -> None:
    error = refusal(f"http://localhost:{port}/image.png", **inside(port, http=False))
    assert error.reason == "IMAGE_URI_SCHEME_REFUSED"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_an_allowed_host_with_a_private_address_is_refused(port: int, host: str) -> None:
    error = refusal(f"http://{host}:{port}/image.png", **inside(port, private_addresses=False))
    assert isinstance(error, PermissionDenied)
    assert error.reason == "IMAGE_URI_ADDRESS_REFUSED"


def test_one_private_address_among_public_ones_refuses_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 443)) for ip in ("93.184.216.34", "10.0.0.7")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
    assert refusal("https://images.example/a", hosts=("images.example",)).reason == "IMAGE_URI_ADDRESS_REFUSED"


def test_the_address_that_was_checked_is_the_one_that_is_asked(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: a second look-up would return an internal address. There is none."""
    lookups: list[str] = []
    connected: list[tuple[str, int]] = []

    def look_up(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        lookups.append(host)
        ip = "93.184.216.34" if len(lookups) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))]

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        connected.append(address)
        raise OSError("not in a test")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    error = refusal(
        f"http://images.example:{port}/a", **inside(port, hosts=("images.example",), private_addresses=False)
    )
    assert isinstance(error, Unavailable)
    assert lookups == ["images.example"]
    assert connected == [("93.184.216.34", port)]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.field
@pytest.mark.parametrize(
    "address",
    [
        *(
            "fec0::1",
            "feff::1",
        ),
        *("192.0.0.8", "192.88.99.1", "3fff::1"),
        *controls("::10.0.0.1", "::8.8.8.8", "::ffff:0:10.0.0.1", "64:ff9b:1::10.0.0.1", "fe80::5efe:8.8.8.8"),
        *controls("2002:0a00:0001::1", "64:ff9b::10.0.0.1", "5f00::1", "100::1"),
    ],
)
def test_addresses_of_a_house_are_not_public_however_they_are_written(address: str) -> None:
    assert not is_public(address)


@pytest.mark.field
@pytest.mark.parametrize("path", ["a%00.png", "%00", *controls("a%ff.png", "a" * 3000, "%2e%2e/%2e%2e/etc/passwd")])
def test_a_path_that_no_file_has_is_refused(tmp_path: Path, path: str) -> None:
    error = refusal(f"file://{tmp_path}/{path}", directories=(tmp_path,))
    assert isinstance(error, InvalidInput | PermissionDenied | NotFound)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("path", "kind", "reason"),
    [
        ("moved", PermissionDenied, "IMAGE_URI_REDIRECT_REFUSED"),
        ("missing", NotFound, "IMAGE_URI_NOT_FOUND"),
        ("broken", Unavailable, "IMAGE_FETCH_FAILED"),
        ("forbidden", InvalidInput, "IMAGE_URI_STATUS"),
        ("zipped", InvalidInput, "IMAGE_URI_ENCODED"),
        ("lies", Unavailable, "IMAGE_FETCH_FAILED"),
    ],
)
def test_answers_that_are_no_image(port: int, path: str, kind: type[SightlineError], reason: str) -> None:
    error = refusal(f"http://localhost:{port}/{path}", **inside(port))
    assert type(error) is kind
    assert error.reason == reason


@pytest.mark.parametrize("path", ["large", "large-unsized"])
def test_bytes_are_bounded(port: int, path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        fetch(f"http://localhost:{port}/{path}", ScorerLimits(max_image_bytes=4000), **inside(port))
    assert caught.value.reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("path", ["drip", "drip-headers"])
def test_time_is_bounded_as_a_whole(port: int, path: str) -> None:
    error = refusal(f"http://localhost:{port}/{path}", **inside(port, timeout_seconds=0.6))
    assert isinstance(error, DeadlineExceeded)
    assert error.reason == "IMAGE_FETCH_TIMEOUT"


def test_proxies_of_the_environment_are_not_used(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(f"http://localhost:{port}/image.png", **inside(port)) == IMAGE


def test_files_of_allowed_directories(tmp_path: Path) -> None:
    allowed, secret = tmp_path / "images", tmp_path / "secret.png"
    allowed.mkdir()
    (allowed / "a b.png").write_bytes(IMAGE)
    secret.write_bytes(IMAGE)
    (allowed / "out.png").symlink_to(secret)
    (allowed / "in.png").symlink_to(allowed / "a b.png")
    settings = {"directories": (allowed,)}
    assert fetch(f"file://{allowed}/a%20b.png", **settings) == IMAGE
    assert fetch(f"file://{allowed}/in.png", **settings) == IMAGE
    for path in ("out.png", "../secret.png", "%2e%2e/secret.png", "", "."):
        assert refusal(f"file://{allowed}/{path}", **settings).reason == "IMAGE_URI_FILE_REFUSED", path
    assert refusal(f"file://{allowed}/none.png", **settings).reason == "IMAGE_URI_NOT_FOUND"
    assert refusal("file://elsewhere/etc/passwd", **settings).reason == "IMAGE_URI_INVALID"
    assert refusal("file:///etc/passwd", **settings).reason == "IMAGE_URI_FILE_REFUSED"
    assert refusal("file:///dev/zero", directories=(Path("/dev"),)).reason == "IMAGE_URI_FILE_REFUSED"
    with pytest.raises(InvalidInput) as caught:
        fetch(f"file://{allowed}/in.png", ScorerLimits(max_image_bytes=10), **settings)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.png")
    assert refusal(f"file://{tmp_path}/pipe.png", directories=(tmp_path,)).reason == "IMAGE_URI_FILE_REFUSED"
