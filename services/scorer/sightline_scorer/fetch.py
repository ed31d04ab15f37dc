"""Images that a request names by URI: fetched only from places in the settings, and never from internal addresses.

- http and https: the host must be listed, the port too; no user names. The host's addresses are looked up once and
checked, and the connection uses a checked address, so that DNS rebinding has no effect. Private, loopback, link-local
and other special addresses are refused, also if wrapped in IPv6. A redirect is refused. Proxies from the environment
are not used.
- file: the file, with every link followed, must be a plain file inside a listed directory.
- Bytes and total time are bounded: a server that sends a byte now and then is cut off too.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ipaddress
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from sightline.errors import DeadlineExceeded, InvalidInput, NotFound, PermissionDenied, SightlineError, Unavailable
from sightline_chassis.images import check_size

from sightline_scorer import metrics
from sightline_scorer.settings import FetchSettings, ScorerLimits

_PORTS = {"http": 80, "https": 443}
_CHUNK = 64 * 1024
_MAX_URI = 4096
_EMBEDDING = [(ipaddress.IPv6Network(net), shift) for net, shift in (
    ("64:ff9b::/96", 0),  # NAT64
    ("64:ff9b:1::/48", 0),  # NAT64 of a network's own: its last 32 bits, where the prefix is of 96
    ("::/96", 0),  # IPv4-compatible, long out of use
    ("::ffff:0:0:0/96", 0),  # IPv4-translated (SIIT)
    ("fe80::5efe:0:0/96", 0), ("fe80::200:5efe:0:0/96", 0),  # ISATAP
)]  # fmt: skip
"""Networks whose addresses contain an IPv4 address, and its position in bits from the right."""
_INSIDE = [
    ipaddress.ip_network(net)
    for net in (
        *("64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96", "100::/64", "5f00::/16", "3fff::/20"),
        *("192.0.0.0/24", "192.88.99.0/24"),
    )
]
"""Never addresses of a public host, though `ipaddress` calls some of them global."""


class Fetcher:
    """Fetches images in its own threads.

    Args:
        settings: what may be fetched.
        limits: maximum bytes of an image.
    """

    def __init__(self, settings: FetchSettings, limits: ScorerLimits) -> None:
        self._settings = settings
        self._limits = limits
        self._directories = [directory.resolve() for directory in settings.directories]
        self._pool = ThreadPoolExecutor(settings.max_at_once, thread_name_prefix="fetch")
        self._tls = ssl.create_default_context() if settings.hosts else None

    @property
    def schemes(self) -> list[str]:
        """Schemes that it fetches."""
        web = (["https", "http"] if self._settings.http else ["https"]) if self._settings.hosts else []
        return [*web, *(["file"] if self._directories else [])]

    async def fetch(self, uri: str, seconds: float | None = None) -> bytes:
        """The bytes behind a URI.

        Raises InvalidInput, PermissionDenied, NotFound, Unavailable or DeadlineExceeded.
        """
        limit = self._settings.timeout_seconds if seconds is None else min(seconds, self._settings.timeout_seconds)
        deadline = time.monotonic() + limit
        try:
            parts = self._parse(uri)
            work = asyncio.get_running_loop().run_in_executor(self._pool, self._fetch, parts, deadline)
            async with asyncio.timeout(limit):
                content = await work
        except TimeoutError:
            metrics.FETCHES.labels("IMAGE_FETCH_TIMEOUT").inc()
            raise _too_slow(limit) from None
        except SightlineError as error:
            metrics.FETCHES.labels(error.reason).inc()
            raise
        metrics.FETCHES.labels("OK").inc()
        return content

    def close(self) -> None:
        """End the threads as their fetches end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _parse(self, uri: str) -> SplitResult:
        if not self.schemes:
            raise PermissionDenied(
                "this service does not fetch images by URI: send image.content or image.sha256, or allow hosts in "
                "fetch.hosts",
                reason="IMAGE_URI_OFF",
            )
        if len(uri) > _MAX_URI or any(ord(letter) <= 32 or ord(letter) == 127 for letter in uri):
            raise InvalidInput(
                f"image.uri holds white space or control characters, or over {_MAX_URI} characters: percent-encode it",
                reason="IMAGE_URI_INVALID",
            )
        try:
            parts = urlsplit(uri)
            parts.port  # noqa: B018  raises where it is not a number
        except ValueError as error:
            raise InvalidInput(f"image.uri is not a URI: {error}", reason="IMAGE_URI_INVALID") from None
        if parts.scheme not in self.schemes:
            raise PermissionDenied(
                f"image.uri has scheme {parts.scheme!r}, allowed: {', '.join(self.schemes)}",
                reason="IMAGE_URI_SCHEME_REFUSED",
            )
        return parts

    def _fetch(self, parts: SplitResult, deadline: float) -> bytes:
        content = self._read_file(parts) if parts.scheme == "file" else self._get(parts, deadline)
        check_size(len(content), self._limits)
        return content

    def _get(self, parts: SplitResult, deadline: float) -> bytes:
        host, port = self._allowed_host(parts)
        last: OSError | None = None
        for address in self._checked_addresses(host, port):
            try:
                return self._get_from(address, host, port, parts, deadline)
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() >= deadline:
                    raise _too_slow(self._settings.timeout_seconds) from error
                last = error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")
        raise Unavailable(
            f"{host}:{port} could not be reached for the image: {last}", reason="IMAGE_FETCH_FAILED"
        ) from last

    def _allowed_host(self, parts: SplitResult) -> tuple[str, int]:
        if parts.username is not None or parts.password is not None:
            raise InvalidInput("image.uri holds a user name: leave it out", reason="IMAGE_URI_INVALID")
        try:
            host = (parts.hostname or "").rstrip(".").encode("idna").decode().lower()
        except UnicodeError:
            host = ""
        if not host:
            raise InvalidInput("image.uri names no host", reason="IMAGE_URI_INVALID")
        if not any(_matches(host, pattern.lower()) for pattern in self._settings.hosts):
            raise PermissionDenied(
                f"host {host!r} of image.uri is not allowed: send the image itself, or list the host in fetch.hosts",
                reason="IMAGE_URI_HOST_REFUSED",
            )
        port = parts.port if parts.port is not None else _PORTS[parts.scheme]
        if port not in self._settings.ports:
            raise PermissionDenied(
                f"port {port} of image.uri is not allowed: list it in fetch.ports", reason="IMAGE_URI_PORT_REFUSED"
            )
        return host, port

    def _checked_addresses(self, host: str, port: int) -> list[str]:
        """The host's addresses, looked up once. If one is not public, the host is refused."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Unavailable(
                f"host {host!r} of image.uri has no address: {error}", reason="IMAGE_FETCH_FAILED"
            ) from error
        addresses = list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
        if not self._settings.private_addresses:
            for address in addresses:
                if not is_public(address):
                    raise PermissionDenied(
                        f"host {host!r} of image.uri has an address that is not public: send the image itself",
                        reason="IMAGE_URI_ADDRESS_REFUSED",
                    )
        return addresses

    def _get_from(self, address: str, host: str, port: int, parts: SplitResult, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _too_slow(self._settings.timeout_seconds)
        with socket.create_connection((address, port), timeout=left) as plain, _cut_off(plain, deadline):
            tls = parts.scheme == "https"
            assert self._tls is not None
            with self._tls.wrap_socket(plain, server_hostname=host) if tls else plain as stream:
                connection = http.client.HTTPConnection(host, port)
                connection.sock = stream
                path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                headers = {"Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}
                connection.request("GET", path, headers={"User-Agent": "sightline-scorer", **headers})
                with contextlib.closing(connection.getresponse()) as response:
                    content = self._read(response, host)
                if time.monotonic() >= deadline:  # a cut-off response looks like its end
                    raise _too_slow(self._settings.timeout_seconds)
                return content

    def _read(self, response: http.client.HTTPResponse, host: str) -> bytes:
        if 300 <= response.status < 400:
            raise PermissionDenied(
                f"{host} redirects image.uri elsewhere ({response.status}): give the final address",
                reason="IMAGE_URI_REDIRECT_REFUSED",
            )
        if response.status in (404, 410):
            raise NotFound(f"{host} does not have this image ({response.status})", reason="IMAGE_URI_NOT_FOUND")
        if response.status >= 500 or response.status == 429:
            raise Unavailable(
                f"{host} answered {response.status}; try again", reason="IMAGE_FETCH_FAILED", retry_after=1
            )
        if response.status != 200:
            raise InvalidInput(f"{host} answered image.uri with {response.status}", reason="IMAGE_URI_STATUS")
        if response.getheader("Content-Encoding", "identity").lower() != "identity":
            raise InvalidInput(
                f"{host} answered with an encoded body: send the image itself", reason="IMAGE_URI_ENCODED"
            )
        if response.length is not None:
            check_size(response.length or 1, self._limits)
        pieces, size = [], 0
        while piece := response.read1(_CHUNK):
            size += len(piece)
            check_size(size, self._limits)
            pieces.append(piece)
        if response.length:  # http.client counts down the remaining bytes
            raise OSError(f"the response ended {response.length} bytes early")
        return b"".join(pieces)

    def _read_file(self, parts: SplitResult) -> bytes:
        if parts.netloc not in ("", "localhost"):
            raise InvalidInput("a file URI names no host: file:///DIRECTORY/FILE", reason="IMAGE_URI_INVALID")
        try:
            path = Path(os.path.realpath(unquote(parts.path, errors="strict")))
        except ValueError:  # a NUL, or no UTF-8
            raise InvalidInput("image.uri holds a path that no file can have", reason="IMAGE_URI_INVALID") from None
        refused = PermissionDenied(
            "the file of image.uri is not inside a directory of fetch.directories, or no plain file",
            reason="IMAGE_URI_FILE_REFUSED",
        )
        if not self._inside(path):
            raise refused
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound("there is no file at image.uri", reason="IMAGE_URI_NOT_FOUND") from None
        except OSError as error:
            raise refused from error
        try:
            facts = os.fstat(handle)
            # A directory in the path may have become a link since: check the opened file.
            if not stat.S_ISREG(facts.st_mode) or not self._inside(Path(os.path.realpath(f"/proc/self/fd/{handle}"))):
                raise refused
            check_size(facts.st_size, self._limits)
            with open(handle, "rb", closefd=False) as file:
                return file.read(self._limits.max_image_bytes + 1)
        finally:
            os.close(handle)

    def _inside(self, path: Path) -> bool:
        return any(path.is_relative_to(directory) for directory in self._directories)


def is_public(address: str) -> bool:
    """Whether an IP address is public, including an address embedded in it."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        inner += [ipaddress.IPv4Address(int(ip) >> shift & 0xFFFFFFFF) for net, shift in _EMBEDDING if ip in net]
        if any(one is not None and not is_public(str(one)) for one in inner):
            return False
        if ip.ipv4_mapped is not None:
            return True
        if ip.is_site_local:
            return False
    if any(ip in net for net in _INSIDE):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


def _matches(host: str, pattern: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


@contextlib.contextmanager
def _cut_off(connection: socket.socket, deadline: float) -> Iterator[None]:
    """Shut down the connection at the deadline, whatever it is doing."""

    def shut() -> None:
        with contextlib.suppress(OSError):
            handle.shutdown(socket.SHUT_RDWR)

    handle = connection.dup()  # TLS takes over the socket itself
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), shut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        handle.close()


def _too_slow(seconds: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the image was not fetched within {seconds:.3g} s: allow more time, or send the image itself",
        reason="IMAGE_FETCH_TIMEOUT",
    )
