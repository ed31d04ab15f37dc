"""Fleet: the samplers behind one target, each a member with its own connection.

    dns:///sampler.ns.svc:50051         a headless Service: all ready pods, resolved again while sampling
    ipv4:10.0.0.1:50052,10.0.0.2:50052  a list

The member with the fewest prompts in progress samples next. An unavailable member is skipped until it is back, and
another does its work: candidates carry their seeds, so a run's pairs do not depend on the number of members. A policy
is pushed to all, proved on each, and active on all before sampling continues. A member that fails is left out and
named, and is brought up to date when it is used again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, Unpack

import numpy as np
from sightline.errors import Cancelled, DeadlineExceeded, Overloaded, SightlineError, Unavailable
from sightline.patience import Patience
from sightline.sampler import Asked, Images, Policies, PolicySelector, SampleOptions, Samples, TokenScores
from sightline.sampler.types import Distortion

from sightline_trainer.serving import RunPolicies, ServedSampler

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_UP_SECONDS = 5.0
_PAUSE, _LONGEST_PAUSE = 1.0, 10.0
_AWAY = (Unavailable, Cancelled, DeadlineExceeded, Overloaded)


@dataclass(eq=False)
class Member:
    """One sampler of a fleet.

    Attributes:
        address: its address.
        client: its own connection.
        under_way: its calls in progress.
        failures: number of failures since it last answered.
        not_before: when it may be called again, by the monotonic clock.
    """

    address: str
    client: ServedSampler
    under_way: int = 0
    failures: int = 0
    not_before: float = 0.0

    def failed(self, error: SightlineError) -> None:
        """Skip it for a while; earlier calls that fail meanwhile do not count again."""
        now = time.monotonic()
        if now < self.not_before:
            return
        self.failures += 1
        pause = min(0.25 * 2.0**self.failures, _LONGEST_PAUSE)
        self.not_before = now + max(pause, error.retry_after or 0.0)
        if self.failures == 1:
            logger.warning("sampler %s is left out for now: %s", self.address, error)


class Fleet(ServedSampler):
    """All samplers of a target. Make it inside the running event loop.

    Args:
        target: see the module.
        policies: the run's policies; None restores none.
        outage_seconds: how long all of them may be unavailable.
        quorum: share of the members that must take a policy.
        options: as for `ServedSampler`; `patience` applies to calls that any member may answer.
    """

    def __init__(
        self,
        target: str,
        *,
        policies: RunPolicies | None,
        outage_seconds: float,
        quorum: float = 0.5,
        try_seconds: float = 300.0,
        **options: Any,
    ) -> None:
        super().__init__(target, policies=policies, **options)
        self._target, self._outage, self._quorum = target, outage_seconds, quorum
        self._credentials = {name: options[name] for name in ("tls", "token") if name in options}
        tls = self._credentials.get("tls")
        if tls is not None and not tls.server_name and target.startswith("dns:"):
            named = replace(tls, server_name=target.rpartition("/")[2].removeprefix("dns:").rpartition(":")[0])
            self._credentials["tls"] = named  # members are called by address
        self._try_seconds = try_seconds
        self._members: dict[str, Member] = {}
        self._looked_up = 0.0
        self._looking = asyncio.Lock()

    async def members(self) -> list[Member]:
        """The current members, by address.

        Raises:
            Unavailable: the target's name does not resolve, and no sampler was found before.
        """
        async with self._looking:
            now = time.monotonic()
            if not self._members or now - self._looked_up > _LOOK_UP_SECONDS:
                self._looked_up = now
                await self._look_up()
        return [self._members[address] for address in sorted(self._members)]

    async def sample(self, image: Images, prompt: Asked, n: int, **options: Unpack[SampleOptions]) -> Samples:
        """As `ServedSampler.sample`, by the member with the fewest prompts in progress."""
        return await self._by_one(lambda client: client.sample(image, prompt, n, **options))

    async def score_tokens(
        self,
        image: Images,
        prompt: Asked,
        token_ids: Sequence[int] | np.ndarray[Any, Any],
        *,
        policy: PolicySelector | None = None,
        distortion: Distortion | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  gRPC sends it to the server
    ) -> TokenScores:
        """As `ServedSampler.score_tokens`, by the member with the fewest prompts in progress."""
        return await self._by_one(
            lambda client: client.score_tokens(
                image, prompt, token_ids, policy=policy, distortion=distortion, timeout=timeout
            )
        )

    async def policies(self, *, timeout: float | None = None) -> Policies:  # noqa: ASYNC109
        """As for one member."""
        return await self._by_one(lambda client: client.policies(timeout=timeout))

    async def each(self, work: Callable[[ServedSampler], Awaitable[T]], what: str, seconds: float) -> dict[str, T]:
        """Do something at all members concurrently; those that fail are left out and named.

        Args:
            work: the work to do.
            what: the work in words, for messages: "take policy 3".
            seconds: time after which a member counts as failed.

        Returns:
            Results by address.

        Raises:
            SightlineError: fewer members than the quorum did it; the others refused, or stayed unavailable for the
                whole outage.
        """
        done: dict[str, T] = {}
        until = time.monotonic() + self._outage

        async def one(member: Member) -> T | SightlineError:
            try:
                async with asyncio.timeout(seconds):
                    return await work(member.client)
            except TimeoutError:
                return DeadlineExceeded(f"not done in {seconds:.0f} s", reason="FLEET_DEADLINE")
            except SightlineError as error:
                return error

        while True:
            members = await self._patient_members(until)
            asked = [member for member in members if member.address not in done]
            errors: list[SightlineError] = []
            for member, result in zip(asked, await asyncio.gather(*map(one, asked)), strict=True):
                if isinstance(result, SightlineError):
                    errors.append(result)
                    member.failed(result)
                else:
                    member.failures, member.not_before = 0, 0.0
                    done[member.address] = result
            found = sum(member.address in done for member in members)
            if found >= max(1, self._quorum * len(members)):
                return done
            final = [error for error in errors if not isinstance(error, _AWAY) or error.reason == "FLEET_DEADLINE"]
            if final or time.monotonic() > until:
                error = (final or errors)[0]
                counted = f"{found} of {len(members)} samplers could {what}"
                raise type(error)(f"{error.message} ({counted})", reason=error.reason) from error
            await asyncio.sleep(_PAUSE)

    async def close(self) -> None:
        """Close all connections."""
        for member in self._members.values():
            await member.client.close()
        await super().close()

    async def _by_one(self, ask: Callable[[ServedSampler], Awaitable[T]]) -> T:
        until: float | None = None  # deadline, set at the first failure
        while True:
            members = await self._patient_members(time.monotonic() + self._outage)
            now = time.monotonic()
            up = [member for member in members if member.not_before <= now]
            if not up:
                await asyncio.sleep(max(0.05, min(member.not_before for member in members) - now))
                continue
            member = min(up, key=lambda one: (one.under_way, one.failures))
            member.under_way += 1
            try:
                result = await ask(member.client)
            except SightlineError as error:
                unproven = error.reason == "POLICY_DID_NOT_ARRIVE" and len(members) > 1
                until = until or now + self._outage
                if not (isinstance(error, _AWAY) or unproven) or time.monotonic() > until:
                    raise
                member.failed(error)
            else:
                member.failures = 0
                return result
            finally:
                member.under_way -= 1

    async def _patient_members(self, until: float) -> list[Member]:
        """The current members; while there is none, as between two pods of a Service, resolve again."""
        while True:
            try:
                return await self.members()
            except Unavailable:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(_PAUSE)

    async def _look_up(self) -> None:
        try:
            found = await asyncio.to_thread(addresses_of, self._target)
        except OSError as error:
            if not self._members:
                raise Unavailable(f"{self._target} cannot be resolved: {error}", reason="TARGET_UNKNOWN") from None
            return
        for address in found:
            if address not in self._members:
                self._members[address] = Member(address, self._connect(address))
        for address in set(self._members) - set(found):
            if not self._members[address].under_way:
                await self._members.pop(address).client.close()

    def _connect(self, address: str) -> ServedSampler:
        return ServedSampler(
            address,
            policies=self._given,
            timeout=self._try_seconds + 5,
            patience=Patience(seconds=2, try_seconds=self._try_seconds),
            **self._credentials,
        )


def is_fleet(target: str) -> bool:
    """Whether a target may have several samplers behind it."""
    return target.startswith(("dns:", "ipv4:", "ipv6:"))


def addresses_of(target: str) -> list[str]:
    """Addresses behind a target that `is_fleet`, sorted. Blocks.

    Raises:
        OSError: its name does not resolve.
    """
    scheme, _, rest = target.partition(":")
    if scheme != "dns":
        return sorted(rest.split(","))
    name, _, port = rest.rpartition("/")[2].rpartition(":")
    found = socket.getaddrinfo(name, int(port), type=socket.SOCK_STREAM)
    hosts = {str(each[4][0]) for each in found}
    return sorted(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts)
