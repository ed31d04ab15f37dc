"""Many (image, prompt) pairs through one client: what the sync and the async `sample_many` share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from sightline.errors import InvalidInput, SightlineError
from sightline.many import row_of
from sightline.sampler.streams import SampleOptions
from sightline.sampler.turns import Asked, Images
from sightline.sampler.types import Samples
from sightline.sampler.wire import read_images

_OPTIONS = frozenset(SampleOptions.__annotations__)


class PairOptions(SampleOptions, total=False):
    """Options of one pair, which override the common ones.

    Attributes:
        n: number of candidates, K.
    """

    n: int


Pair: TypeAlias = tuple[Images, Asked] | tuple[Images, Asked, PairOptions | None]
"""One image or several, a prompt or messages, and optionally their own options."""

Outcome: TypeAlias = Samples | SightlineError
"""The outcome of one pair: its candidates, or why there are none."""


class SampleItem:
    """One pair, its images read. If they cannot be read, `outcome` holds the error already.

    Args:
        pair: the caller's pair.
        number: its place among all, from 0.
        n: default number of candidates.
        options: the common options; the pair's own override them.
    """

    def __init__(self, pair: Pair, number: int, n: int, options: SampleOptions) -> None:
        self.outcome: SightlineError | None = None
        self.images: list[bytes] = []
        self.asked: Asked = ""
        self.options: SampleOptions = {}
        try:
            images, asked, *own = row_of(pair, "(image, prompt) or (image, prompt, options)")
            chosen: PairOptions = {"n": n, **options, **_own_options(own)}
            self.n = chosen.pop("n")
            self.options = chosen
            shared = options.get("request_id")
            if shared and chosen.get("request_id") == shared:
                self.options["request_id"] = f"{shared}-{number}"
            self.images, self.asked = read_images(images, asked)
        except SightlineError as error:
            self.outcome = error


def _own_options(own: Sequence[Any]) -> PairOptions:
    options = own[0] if own and own[0] is not None else {}
    if not isinstance(options, Mapping) or (unknown := set(options) - {*PairOptions.__annotations__, *_OPTIONS}):
        what = f"a {type(options).__name__}" if not isinstance(options, Mapping) else f"one with {sorted(unknown)}"
        raise InvalidInput(f"a row's options are a mapping of the options of sample, not {what}", reason="ROW_UNUSABLE")
    return cast(PairOptions, dict(options))


def items_of(pairs: Iterable[Pair], n: int, options: SampleOptions) -> Iterator[SampleItem]:
    """The items of the pairs, made lazily."""
    return (SampleItem(pair, number, n, options) for number, pair in enumerate(pairs))
