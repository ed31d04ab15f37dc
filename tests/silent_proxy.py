"""Silent proxy: a TCP proxy that can fall silent, like a firewall that forgets a connection without notice."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SilentProxy:
    """Forwards bytes to `target` ("host:port") until `silence` is called.

    Attributes:
        address: where it listens.
        connections: that were ever made.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._silent: set[int] = set()
        self._lock = threading.Lock()
        self.connections = 0
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> None:
        """From now on existing connections carry nothing and are not closed. New ones work."""
        with self._lock:
            self._silent.update(map(id, self._open))

    def close(self) -> None:
        """Close everything."""
        self._listener.close()
        with self._lock:
            for one in self._open:
                one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                if id(source) not in self._silent:  # keep reading: a full window would reveal it
                    sink.sendall(data)
            if id(source) not in self._silent:
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # closed, at either end


@contextmanager
def silent_proxy(target: str) -> Iterator[SilentProxy]:
    """A proxy before `target`."""
    proxy = SilentProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
