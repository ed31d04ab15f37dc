"""Byte-pair merges of a long word in n log n steps.

open_clip's own loop checks every pair again after each merge: a word of 8000 letters takes seconds, and a request may
have a thousand. The result is the same: the pair of lowest rank first, from left to right. (A pair made by a merge
always has a higher rank than that merge, so doing one at a time changes nothing.)
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping


def merge(letters: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The tokens of a word, its last one with the end mark.

    Args:
        letters: the word in the tokenizer's byte letters, not empty.
        ranks: rank of each pair that merges.
    """
    parts = [*letters[:-1], letters[-1] + "</w>"]
    after = [*range(1, len(parts)), -1]
    before = list(range(-1, len(parts) - 1))
    heap = [
        (rank, left, parts[left], parts[left + 1])
        for left in range(len(parts) - 1)
        if (rank := ranks.get((parts[left], parts[left + 1]))) is not None
    ]
    heapq.heapify(heap)
    gone = [False] * len(parts)

    def offer(left: int, right: int) -> None:
        if left >= 0 and right >= 0 and (rank := ranks.get((parts[left], parts[right]))) is not None:
            heapq.heappush(heap, (rank, left, parts[left], parts[right]))

    while heap:
        _, left, first, second = heapq.heappop(heap)
        right = after[left]
        if gone[left] or right < 0 or parts[left] != first or parts[right] != second:
            continue  # one of the two was merged with another meanwhile
        parts[left] = first + second
        gone[right] = True
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
        offer(before[left], left)
        offer(left, after[left])
    return [part for part, merged in zip(parts, gone, strict=True) if not merged]
