"""Both towers of a model from one import of torch: the text tower in a fork of the image tower's process.

Triton has a process for each model, and half of each process's cost is the same: torch with its libraries (350 MiB that
processes do not share, five CPU seconds). Therefore, on a CPU with one copy of each tower, the image tower's process
makes the model and forks before it computes anything. The fork shares those pages and has the text tower.
Triton's process for the text tower does not import torch; it passes batches on through a socket:

    tritonserver ── clip_image's process (image tower) ── fork (text tower)
                 └─ clip_text's process (light) ───socket────┘

Both towers still work at the same time. If the fork is gone, for example because its parent was killed, the light
process loads the text tower itself. Copied beside model.py into Triton's repository.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SOCKET = "text.sock"
HELLO = b"the text tower is loaded"
FIND_SECONDS = 10.0
"""How long the light process waits for the socket, which is created before anything is loaded."""
Ids = npt.NDArray[np.int32]
Rows = npt.NDArray[np.float32]


class TowerGone(Exception):
    """No process answers at the other end of the socket."""


class Host:
    """The image tower's side: a socket from the start, and the fork behind it.

    Args:
        directory: where to create the socket.
    """

    def __init__(self, directory: Path) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        with _short(directory) as place:
            path = f"{place}/{SOCKET}"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self._listening.bind(path)
            os.chmod(path, 0o600)
        self._listening.listen(2)

    def close(self) -> None:
        """Withdraw the offer: remove the socket."""
        self._listening.close()

    def fork(self, serve: Callable[[], Callable[[Ids], Rows]]) -> None:
        """Continue in the parent; the child builds the tower and serves it until the parent has ended."""
        theirs, ours = os.pipe()
        if os.fork():
            os.close(theirs)
            self._lifeline = ours  # the system closes it, however this process ends
            self._listening.close()
            return
        try:
            os.close(ours)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            threading.Thread(target=_end_with, args=(theirs,), daemon=True).start()
            tower = serve()
            while True:
                connection, _ = self._listening.accept()
                with connection, contextlib.suppress(OSError, TowerGone):
                    send(connection, HELLO)
                    while True:
                        send(connection, _answer(tower, receive(connection)))
        finally:
            os._exit(1)


class Guest:
    """The text tower, as the light process uses it.

    Args:
        directory: where the socket is.

    Raises:
        TowerGone: the fork does not answer.
    """

    def __init__(self, directory: Path, seconds: float = FIND_SECONDS) -> None:
        self._directory = directory
        self._socket = self._connected(seconds)

    def __call__(self, ids: Ids) -> Rows:
        """Embeddings [B, D] of token ids [B, L]. Raises RuntimeError with the tower's error, or TowerGone."""
        try:
            return self._ask(ids)
        except (OSError, TowerGone):  # a new fork may use the same name
            self._socket = self._connected(0.0)
            return self._ask(ids)

    def _ask(self, ids: Ids) -> Rows:
        send(self._socket, struct.pack("<II", *ids.shape) + np.ascontiguousarray(ids).tobytes())
        answer = receive(self._socket)
        if answer[:1] != b"+":
            raise RuntimeError(answer[1:].decode())
        return np.frombuffer(bytearray(answer[1:]), np.float32).reshape(len(ids), -1)

    def _connected(self, seconds: float) -> socket.socket:
        end = time.monotonic() + seconds
        while True:
            found = socket.socket(socket.AF_UNIX)
            try:
                with _short(self._directory) as place:
                    found.connect(f"{place}/{SOCKET}")
                if receive(found) == HELLO:  # the fork starts when the model is loaded
                    return found
                raise TowerGone
            except (FileNotFoundError, ConnectionRefusedError) as error:
                found.close()
                if time.monotonic() > end:
                    raise TowerGone from error
                time.sleep(0.05)
            except OSError as error:
                found.close()
                raise TowerGone from error


def send(connection: socket.socket, message: bytes) -> None:
    """Send a message, preceded by its length."""
    connection.sendall(struct.pack("<Q", len(message)) + message)


def receive(connection: socket.socket) -> bytes:
    """The next message. Raises TowerGone at the end."""
    return _exactly(connection, struct.unpack("<Q", _exactly(connection, 8))[0])


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(1 << 20, size - len(parts)))
        if not part:
            raise TowerGone
        parts += part
    return bytes(parts)


def _answer(tower: Callable[[Ids], Rows], message: bytes) -> bytes:
    rows, length = struct.unpack_from("<II", message)
    ids = np.frombuffer(bytearray(message[8:]), np.int32).reshape(rows, length)
    try:
        return b"+" + np.ascontiguousarray(tower(ids), np.float32).tobytes()
    except Exception as error:
        return b"-" + f"{type(error).__name__}: {error}".encode()


def _end_with(lifeline: int) -> None:
    """End this process when the parent has ended, which closes the other end of the pipe."""
    os.read(lifeline, 1)
    os._exit(0)


@contextlib.contextmanager
def _short(directory: Path) -> Any:
    """A short name for a directory, because the path of a socket may have only about a hundred characters."""
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{held}"
    finally:
        os.close(held)
