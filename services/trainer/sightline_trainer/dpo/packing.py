"""Pack: the rows of a batch as one row, in which the responses to one image and prompt share their prefix.

TRL's batch has a row [prompt, response] for each side of each pair. Here a prompt occurs once, followed by its
responses, each once regardless of the number of its pairs:

    TRL's rows     p1 p2 p3 a1 a2        packed   p1 p2 p3 | a1 | b1 b2 | q1 q2 | c1 ...
                   p1 p2 p3 b1 b2 b3              `-prefix-' `--branches--'  `- the next prompt
                   ...

A branch omits its last token, which predicts nothing that is needed; the last position of the prefix predicts its first
token. Position ids of every branch continue the prefix's. There is no padding: all prompts of a batch follow each
other, and the attention (`attention.py`) separates them and their branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sightline_trainer.dpo.tiles import Group, Tiling, tile
from sightline_trainer.dpo.vision import PromptPictures


@dataclass
class PromptTokens:
    """A processed image and prompt.

    Attributes:
        ids: [P] token ids, image tokens expanded.
        kinds: [1, P, ...] further inputs per token by name, such as `mm_token_type_ids`, if the processor returns them.
        pictures: its images, or None.
        positions: [D, P] position ids, D is 1 or 3; empty until they are needed.
        follows: the position of the token after it.
        blocks: [P] the block of bidirectional attention that a token is in, or -1; None without blocks.
    """

    ids: Tensor
    kinds: dict[str, Tensor]
    pictures: PromptPictures | None
    positions: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    follows: int = 0
    blocks: Tensor | None = None


@dataclass
class Pack:
    """One packed row of T tokens, and how its N scored positions map to TRL's [R, L - 1] layout.

    Attributes:
        input_ids: [1, T]. position_ids: [1, T], or [3, 1, T] with rope in three dimensions.
        kept: [N] the packed position that predicts each scored token. labels: [1, N] those tokens.
        source: [M] which of the N goes to each labelled place of TRL's layout; a response in two pairs is copied twice.
        target: [M] the places, as flat indices into TRL's [R, L - 1]. shape: (R, L - 1).
        groups: one for each prompt. pictures: all images, in the order of their tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    kept: Tensor
    labels: Tensor
    source: Tensor
    target: Tensor
    shape: tuple[int, int]
    groups: tuple[Group, ...]
    pictures: list[PromptPictures]
    _tiling: Tiling | None = None

    @property
    def prefix(self) -> float:
        """Mean number of a prompt's tokens."""
        return sum(group.prefix for group in self.groups) / len(self.groups)

    def to(self, device: torch.device, non_blocking: bool = True) -> Pack:
        """Move its tensors, in place. Data loaders call this like a tensor's method."""
        if self.input_ids.device != device:
            for name in ("input_ids", "position_ids", "kept", "labels", "source", "target"):
                setattr(self, name, getattr(self, name).to(device, non_blocking=non_blocking))
        return self

    def tiling(self, device: torch.device) -> Tiling:
        """Which of its tokens are attended to together; computed once."""
        if self._tiling is None:
            self._tiling = tile(self.groups, device)
        return self._tiling

    def spread(self, values: Tensor) -> Tensor:
        """[1, N] values of the scored tokens in TRL's layout [R, L - 1], zero (False) if there is none."""
        rows, columns = self.shape
        empty = values.new_zeros(rows * columns)
        return empty.index_copy(0, self.target, values[0].index_select(0, self.source)).view(rows, columns)


def pack(
    prompts: Sequence[PromptTokens],
    responses: Sequence[Sequence[Sequence[int]]],
    rows: Sequence[tuple[int, int]],
    columns: int,
    positions: Sequence[Tensor],
) -> Pack:
    """Lay out a batch.

    Args:
        prompts: G processed prompts.
        responses: for each prompt its distinct responses as token ids; none may be empty.
        rows: TRL's R rows, as (prompt, response) indices.
        columns: TRL's L.
        positions: for each prompt [D, P + longest response] position ids of prompt and response; D is 1 or 3.
    """
    ids: list[Tensor] = []
    places: list[Tensor] = []
    kept: list[Tensor] = []
    labels: list[Tensor] = []
    groups: list[Group] = []
    slots: dict[tuple[int, int], tuple[int, int]] = {}
    start = scored = 0
    for g, (prompt, answers, position) in enumerate(zip(prompts, responses, positions, strict=True)):
        prefix = len(prompt.ids)
        ids.append(prompt.ids)
        places.append(position[:, :prefix])
        groups.append(Group(prefix, tuple(len(answer) - 1 for answer in answers), prompt.blocks))
        at = start + prefix
        for k, answer in enumerate(answers):
            tokens = torch.tensor(answer, dtype=torch.long)
            inputs = len(answer) - 1
            ids.append(tokens[:-1])
            places.append(position[:, prefix : prefix + inputs])
            kept.append(torch.cat([torch.tensor([start + prefix - 1]), torch.arange(at, at + inputs)]))
            labels.append(tokens)
            slots[g, k] = (scored, len(answer))
            at += inputs
            scored += len(answer)
        start = at
    source: list[Tensor] = []
    target: list[Tensor] = []
    for r, (g, k) in enumerate(rows):
        first, count = slots[g, k]
        source.append(torch.arange(first, first + count))
        # TRL scores a token in the column of the token before it.
        target.append(r * (columns - 1) + len(prompts[g].ids) - 1 + torch.arange(count))
    position_ids = torch.cat(places, dim=1)
    return Pack(
        input_ids=torch.cat(ids)[None],
        position_ids=position_ids[:, None] if len(position_ids) == 3 else position_ids,
        kept=torch.cat(kept),
        labels=torch.cat(labels)[None],
        source=torch.cat(source),
        target=torch.cat(target),
        shape=(len(rows), columns - 1),
        groups=tuple(groups),
        pictures=[prompt.pictures for prompt in prompts if prompt.pictures is not None],
    )
