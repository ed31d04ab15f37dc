"""Sample one token per row, for all rows at once, each with its own temperature, top-k, top-p and min-p.

    policy      log softmax(z)                                  z: the logits, over the whole vocabulary
    behaviour   q = softmax(y / T) over what remains after       y: z, or z after guidance and penalties;
                                                                suppressed ids, then the k most likely, then the
                                                                smallest set of mass >= top_p (of the rest),
                                                                then ids with q >= min_p max q
    token       the first id whose cumulated q, in id order, exceeds the row's uniform number

Temperature 0 is greedy: the most likely id that is not suppressed, with behaviour log-probability 0. Everything is in
float64, so that a difference in the last bit of a logit moves a boundary by about 1e-7 and practically never past the
uniform number. The order of truncations is that of transformers' `generate` (temperature, top-k, top-p, min-p).
"""

from __future__ import annotations

import dataclasses

import torch

# Elements in float64 at a time. On a CPU, 4 MiB per tensor stay in the cache; on a GPU, 32 MiB need fewer kernels.
_CHUNK_ON_CPU, _CHUNK_ON_GPU = 1 << 19, 1 << 22


@dataclasses.dataclass(slots=True)
class Draw:
    """One token per row: ids, policy and behaviour log-probabilities; `finite` is False if the logits are broken."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    behaviour: torch.Tensor
    finite: torch.Tensor


@dataclasses.dataclass(slots=True)
class Shape:
    """How each row's distribution is processed.

    Attributes:
        temperature: (rows,), float64, 0 for greedy.
        top_p: (rows,), float64 in (0, 1].
        top_k: (rows,), int64, 0 for all.
        min_p: (rows,), float64 in [0, 1).
        truncated: whether any row has a top_p below 1 or a top_k; otherwise the sort is skipped.
        floored: whether any row has a min_p.
        unscaled: whether all rows have temperature 1.
        greedy: whether any row has temperature 0. Stored on the host, since reading the tensors would wait for the GPU.
    """

    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    min_p: torch.Tensor
    truncated: bool
    floored: bool
    greedy: bool
    unscaled: bool

    def rows(self, part: slice) -> Shape:
        """Of some rows."""
        return dataclasses.replace(
            self,
            temperature=self.temperature[part],
            top_p=self.top_p[part],
            top_k=self.top_k[part],
            min_p=self.min_p[part],
        )


def draw(
    logits: torch.Tensor,
    uniform: torch.Tensor,
    shape: Shape,
    suppressed: torch.Tensor,
    processed: torch.Tensor | None = None,
) -> Draw:
    """Sample one token per row.

    Args:
        logits: (rows, vocabulary), the policy's, of any float type.
        uniform: (rows,), float64 in [0, 1).
        shape: how the distribution is processed.
        suppressed: ids (s,) that are never sampled.
        processed: (rows, vocabulary), the logits to sample from, if they are not the policy's.
    """
    rows, vocabulary = logits.shape
    step = max(1, (_CHUNK_ON_GPU if logits.is_cuda else _CHUNK_ON_CPU) // vocabulary)
    parts = [
        _draw(
            logits[a : a + step],
            uniform[a : a + step],
            shape.rows(slice(a, a + step)),
            suppressed,
            None if processed is None else processed[a : a + step],
        )
        for a in range(0, rows, step)
    ]
    if len(parts) == 1:
        return parts[0]
    return Draw(*(torch.cat([getattr(part, f.name) for part in parts]) for f in dataclasses.fields(Draw)))


def _draw(
    logits: torch.Tensor, uniform: torch.Tensor, shape: Shape, suppressed: torch.Tensor, processed: torch.Tensor | None
) -> Draw:
    z = logits.double()
    greedy = shape.temperature == 0
    # q is not divided by its sum: only shares of it are needed.
    once = _by_one_exponential(z, suppressed) if shape.unscaled and processed is None and not z.is_cuda else None
    if once is not None:
        norm, q = once
    else:
        norm = torch.logsumexp(z, dim=-1)
        allowed = (z if processed is None else processed.double()).index_fill(1, suppressed, -torch.inf)
        top = allowed.amax(dim=-1, keepdim=True)
        q = torch.exp_((allowed - top).div_(torch.where(greedy, 1.0, shape.temperature)[:, None]))
    finite = torch.isfinite(norm)
    if shape.truncated:
        q *= keep_mask(q, shape.top_p, shape.top_k)
    if shape.floored:
        q *= q >= shape.min_p[:, None]  # the largest is 1
    cumulated = torch.cumsum(q, dim=-1)
    total = cumulated[:, -1]
    finite &= torch.isfinite(total)
    # Below the total even if u * total rounds up to it: an id without mass must not be sampled.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulated, target[:, None], right=True)[:, 0].clamp_(max=z.shape[1] - 1)
    if shape.greedy:
        tokens = torch.where(greedy, allowed.argmax(dim=-1), tokens)
    at = tokens[:, None]
    logprobs = z.gather(1, at)[:, 0] - norm
    behaviour = torch.where(greedy, 0.0, torch.log(q.gather(1, at)[:, 0] / total))
    return Draw(tokens, logprobs, behaviour, finite)


def _by_one_exponential(z: torch.Tensor, suppressed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Norm and q at temperature 1, of the same exponentials; the bits are those of the general way.

    None if a row's largest logit is suppressed or not finite: then q needs others.
    """
    top = z.amax(dim=-1, keepdim=True)
    if not bool(torch.isfinite(top).all()) or bool((z.index_select(1, suppressed) == top).any()):
        return None
    q = (z - top).exp_()
    norm = q.sum(dim=-1).log_().add_(top[:, 0])  # what torch.logsumexp does
    return norm, q.index_fill_(1, suppressed, 0.0)


def keep_mask(q: torch.Tensor, top_p: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Which ids are left by top-k and then top-p: bool (rows, vocabulary). The likeliest id always stays.

    Of ids with equal probability at the edge, the lower id stays.
    """
    ordered, ids = torch.sort(q, dim=-1, descending=True, stable=True)
    rank = torch.arange(q.shape[1], device=q.device)
    limit = torch.where(top_k > 0, top_k, q.shape[1])
    ordered = ordered * (rank < limit[:, None])
    ordered = ordered / ordered.sum(dim=-1, keepdim=True)
    before = torch.cumsum(ordered, dim=-1) - ordered
    kept = (ordered > 0) & ((before < top_p[:, None]) | (top_p >= 1)[:, None])
    kept[:, 0] = True
    return torch.zeros_like(kept).scatter_(1, ids, kept)
