"""A custom reward function for verl. Checked against verl 0.9.1.

    custom_reward_function:
      path: pkg://sightline.integrations.verl
      name: compute_score                # or compute_score_async; the manager "remote" takes only the first
      reward_kwargs: {target: "scorer:50051", on_failure: raise}

The image is in the dataset's `extra_info` under `image` or `images` (verl removes the prompt's own images from the
row): a path, bytes, "sha256:...", a data URI or a mapping, see `integrations.pictures`.

You must choose what a failure becomes: `on_failure: raise` (verl's V1 trainer drops that trajectory, the older one
stops the run), `drop` (NaN, for your own manager or trainer that skips NaN; verl itself does not), or `value` with
`failure_value: -1.0`. The result's `scored` is 1.0 or 0.0 in every case, and verl logs its mean; the log counts
failures by reason. An error that affects all rows (an unknown model, a refused token) is always raised.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sightline.channel import Tls, Token
from sightline.errors import InvalidInput, SightlineError
from sightline.integrations.columns import image_of
from sightline.integrations.failures import FailureCounts, FailurePolicy, OnFailure
from sightline.patience import TIMEOUT
from sightline.scorer import AsyncScorerClient, ScorerClient
from sightline.scorer.types import ScoreResult
from sightline.scorer.wire import Image, Kind


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    target: str,
    on_failure: OnFailure | None = None,
    failure_value: float | None = None,
    image_key: str | None = None,
    model: str = "",
    kind: Kind = "default",
    timeout: float = TIMEOUT,
    ca_file: str | None = None,
    certificate_file: str | None = None,
    key_file: str | None = None,
    token_file: str | None = None,
    **others: Any,
) -> dict[str, float]:
    """How well a response fits its image.

    Args:
        data_source: verl's; not used.
        solution_str: the response.
        ground_truth: verl's; not used.
        extra_info: holds the image.
        target: the scorer's gRPC target.
        on_failure: what a failure becomes; required.
        failure_value: with on_failure="value".
        image_key: key of the image in `extra_info`; by default `image`, or the first of `images`.
        model: see `ScoreOptions`.
        kind: see `ScoreOptions`; the reward is the score of this kind.
        timeout: seconds, retries included.
        ca_file: PEM file, for an encrypted channel.
        certificate_file: PEM file of our own certificate, if the scorer requires one.
        key_file: PEM file with its key.
        token_file: file with a bearer token.
        others: other arguments that verl passes to every reward function; not used.

    Returns:
        `score`, `scored` (1.0 or 0.0) and `cosine` (NaN after a failure): the same keys each time, as verl requires.

    Raises:
        SightlineError: the failure, with on_failure="raise" or if all rows have it in common; InvalidInput if
            on_failure is missing.
    """
    policy = _policy(on_failure, failure_value)
    try:
        client = _client(_Scorer(target, ca_file, certificate_file, key_file, token_file))
        found = client.score(_image(extra_info, image_key), [solution_str], model=model, kind=kind, timeout=timeout)
    except SightlineError as error:
        return _failed(policy, error)
    return _scored(found)


async def compute_score_async(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    target: str,
    on_failure: OnFailure | None = None,
    failure_value: float | None = None,
    image_key: str | None = None,
    model: str = "",
    kind: Kind = "default",
    timeout: float = TIMEOUT,  # noqa: ASYNC109  gRPC sends it to the server
    ca_file: str | None = None,
    certificate_file: str | None = None,
    key_file: str | None = None,
    token_file: str | None = None,
    **others: Any,
) -> dict[str, float]:
    """As `compute_score`; thousands of calls can wait without threads."""
    policy = _policy(on_failure, failure_value)
    try:
        client = _async_client(_Scorer(target, ca_file, certificate_file, key_file, token_file))
        image = _image(extra_info, image_key)
        found = await client.score(image, [solution_str], model=model, kind=kind, timeout=timeout)
    except SightlineError as error:
        return _failed(policy, error)
    return _scored(found)


class _Scorer(NamedTuple):
    """The scorer's address and credentials."""

    target: str
    ca_file: str | None
    certificate_file: str | None
    key_file: str | None
    token_file: str | None

    def tls(self) -> Tls | None:
        """The encrypted channel, if any of its files is named."""
        root, certificate, key = (
            None if name is None else Path(name) for name in (self.ca_file, self.certificate_file, self.key_file)
        )
        return Tls(root, certificate, key) if root or certificate or key else None

    def token(self) -> Token | None:
        """The bearer token."""
        return None if self.token_file is None else Token(file=Path(self.token_file))


@functools.cache
def _client(scorer: _Scorer) -> ScorerClient:
    return ScorerClient(scorer.target, tls=scorer.tls(), token=scorer.token())


_loops: dict[_Scorer, tuple[asyncio.AbstractEventLoop, AsyncScorerClient]] = {}


def _async_client(scorer: _Scorer) -> AsyncScorerClient:
    """The client of the running event loop; verl keeps one loop in each worker."""
    loop = asyncio.get_running_loop()
    known = _loops.get(scorer)
    if known is None or known[0] is not loop:
        known = (loop, AsyncScorerClient(scorer.target, tls=scorer.tls(), token=scorer.token()))
        _loops[scorer] = known
    return known[1]


def _policy(on_failure: OnFailure | None, failure_value: float | None) -> FailurePolicy:
    return FailurePolicy(on_failure, failure_value)


def _image(extra_info: Mapping[str, Any] | None, key: str | None) -> Image:
    row = {} if extra_info is None else extra_info
    if not isinstance(row, Mapping):
        raise InvalidInput(
            f"extra_info is a {type(row).__name__}, not a mapping with the image under {key or 'image'!r}",
            reason="EXTRA_INFO_UNUSABLE",
        )
    value: Any = row.get(key) if key is not None else row.get("image")
    if value is None and key is None:
        value = row.get("images")
    if isinstance(value, list | tuple) or str(getattr(value, "dtype", "")) == "object":  # Parquet's, arrays of objects
        if len(value) != 1:
            raise InvalidInput(f"the row has {len(value)} images: one is needed", reason="IMAGE_COUNT")
        value = value[0]
    if value is None:
        raise InvalidInput(
            f"extra_info has no image under {key or 'image or images'!r}: it has {', '.join(row) or 'nothing'}",
            reason="IMAGE_MISSING",
        )
    return image_of(value)


def _scored(result: ScoreResult) -> dict[str, float]:
    return {"score": float(result.value[0]), "scored": 1.0, "cosine": float(result.cosine[0])}


_failures = FailureCounts()


def _failed(policy: FailurePolicy, error: SightlineError) -> dict[str, float]:
    reward = policy.reward(error)
    _failures.add(error)
    return {"score": reward, "scored": 0.0, "cosine": float("nan")}
