"""The common base of all clients; a service's sync and async clients share everything but I/O.

Each method is written once, in the service's base class, as a flow: a generator that yields the calls to make, receives
their answers, and returns the result. `SyncClient` and `AsyncClient` differ in how a call is made.

    class BaseScorerClient(BaseClient):
        def _list_models(self, timeout: float | None) -> Flow[Models]:
            return models((yield Rpc("ListModels", pb.ListModelsRequest(), timeout)))

    class ScorerClient(BaseScorerClient, SyncClient):
        def list_models(self, *, timeout: float | None = None) -> Models:
            return self._run(self._list_models(timeout))
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

from sightline.channel import open_aio_channel, open_channel
from sightline.credentials import Tls, Token
from sightline.errors import InvalidInput, PreconditionFailed, SightlineError
from sightline.many import Live
from sightline.patience import TIMEOUT, Budget, Patience, Tries

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rpc:
    """One call that a flow asks for.

    Attributes:
        method: its name in the service.
        request: the message; for a client stream, a function that makes the messages again for each try.
        timeout: seconds for all tries together; None means the client's timeout.
        slow: whether one try may use the whole remaining deadline, even if the patience allows less for a try.
    """

    method: str
    request: Any
    timeout: float | None = None
    slow: bool = False


Flow: TypeAlias = Generator[Rpc, Any, T]
"""Yields calls, receives their answers (or their SightlineError), returns the result."""


class BaseClient:
    """A client of a service.

    Args:
        target: a gRPC target: "127.0.0.1:50051", "dns:///scorer.ns.svc:50051" (calls are spread over all addresses;
            those whose health is NOT_SERVING are skipped).
        timeout: default seconds for a call, retries included.
        patience: how long to retry while a service is unavailable or busy; `ONCE`: never.
        tls: PEM files of an encrypted channel.
        token: a bearer token, sent with every call; a string, or a `Token`, which can also be read from a file.

    Raises:
        InvalidInput: TARGET_MALFORMED.
        PreconditionFailed: a file cannot be read, or the token would go over the network in plaintext.
    """

    _SERVICE: ClassVar[str]
    _STUB: ClassVar[Any]
    _CONTROL: ClassVar[frozenset[str]] = frozenset()
    """Methods that are called even if the service's health is NOT_SERVING."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float = TIMEOUT,
        patience: Patience | None = None,
        tls: Tls | None = None,
        token: str | Token | None = None,
    ) -> None:
        self.timeout, self.patience = timeout, patience or Patience()
        self._budget = Budget(self.patience)
        self._channels = [self._open(target, tls=tls, token=token, health_service=self._SERVICE)]
        if self._CONTROL:
            self._channels.append(self._open(target, tls=tls, token=token))
        self._stubs = [self._STUB(channel) for channel in self._channels]

    def _open(self, target: str, **options: Any) -> Any:
        raise NotImplementedError

    def _tries(self, timeout: float | None, *, slow: bool = False) -> Tries:
        patience = replace(self.patience, try_seconds=None) if slow else self.patience
        seconds = self.timeout if timeout is None else timeout
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:  # also false for NaN
            raise InvalidInput(f"timeout is {seconds!r}: give seconds above 0", reason="TIMEOUT_INVALID")
        return Tries(patience, seconds, self._budget)

    def _method(self, name: str) -> Any:
        if self._budget.closed.is_set():
            raise PreconditionFailed("the client is closed: make another one", reason="CLIENT_CLOSED")
        return getattr(self._stubs[-1 if name in self._CONTROL else 0], name)


class SyncClient(BaseClient):
    """A synchronous client. Safe to share between threads; close it, or use it as a context manager."""

    def _open(self, target: str, **options: Any) -> Any:
        return open_channel(target, **options)

    def _run(self, flow: Flow[T], live: Live | None = None) -> T:
        """Run a flow; its calls are cancelled when `live` stops. Raises SightlineError."""
        try:
            call = next(flow)
            while True:
                try:
                    answer = self._make(call, live)
                except SightlineError as error:
                    call = flow.throw(error)
                else:
                    call = flow.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def _make(self, call: Rpc, live: Live | None) -> Any:
        method, request = self._method(call.method), call.request

        def attempt(seconds: float) -> Any:
            asked = request() if callable(request) else request
            if live is None:
                return method(asked, timeout=seconds)
            under_way = method.future(asked, timeout=seconds)
            with live.holding(under_way.cancel):
                return under_way.result()

        tries = self._tries(call.timeout, slow=call.slow)
        return tries.call(attempt) if live is None else tries.call(attempt, live.stopped)

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._budget.closed.set()
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(BaseClient):
    """A client for asyncio. Make it inside the running event loop; close it, or use it as a context manager."""

    def _open(self, target: str, **options: Any) -> Any:
        return open_aio_channel(target, **options)

    async def _run(self, flow: Flow[T]) -> T:
        """The result of a flow. Raises SightlineError."""
        try:
            call = next(flow)
            while True:
                try:
                    answer = await self._make(call)
                except SightlineError as error:
                    call = flow.throw(error)
                else:
                    call = flow.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _make(self, call: Rpc) -> Any:
        method, request = self._method(call.method), call.request
        return await self._tries(call.timeout, slow=call.slow).acall(
            lambda seconds: method(request() if callable(request) else request, timeout=seconds)
        )

    async def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._budget.closed.set()
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
