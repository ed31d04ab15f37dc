"""Compare four ways to let responses share a prefix in attention.

The ways are one dense mask, FlexAttention, two calls as in the update, and FlashAttention over the prefix and over the
branch itself, merged by log-sum-exp, which needs no mask. Each runs forward and backward over 8 prompts; a fifth of the
tokens belong to the two responses of each prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import report
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

LENGTHS = (512, 1024, 2048, 4096)


class _Merged(torch.autograd.Function):
    """Flash attention of branches over their prefix and over themselves; gradients use the sums of the whole."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, kp: Tensor, vp: Tensor, kb: Tensor, vb: Tensor, count: int) -> Tensor:
        """q, kb, vb [B, H, R, D] of `count` branches one after another; kp, vp [B, H, P, D]."""
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        qs, ks, vs = (_apart(t, count) for t in (q, kb, vb))
        over = flash(q, kp, vp, 0.0, False)
        own = flash(qs, ks, vs, 0.0, True)
        own_out, own_lse = _whole(own[0], count), _whole(own[1][..., None], count)[..., 0]
        lse = torch.logaddexp(over[1], own_lse)
        out = over[0] * (over[1] - lse).exp()[..., None] + own_out * (own_lse - lse).exp()[..., None]
        out = out.to(q.dtype)
        ctx.save_for_backward(q, kp, vp, kb, vb, out, lse)
        ctx.rest = (over[2:8], own[2:8], count)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        """Use output and sum of the whole: a part of a softmax is its exponentials divided by the sum of the whole."""
        q, kp, vp, kb, vb, out, lse = ctx.saved_tensors
        (cq, ck, mq, mk, s, o), own, count = ctx.rest
        back = torch.ops.aten._scaled_dot_product_flash_attention_backward
        lse = lse.contiguous()
        dq, dkp, dvp = back(grad, q, kp, vp, out, lse, cq, ck, mq, mk, 0.0, False, s, o)
        cq, ck, mq, mk, s, o = own
        qs, ks, vs, gs, os = (_apart(t, count) for t in (q, kb, vb, grad, out))
        dq2, dkb, dvb = back(
            gs, qs, ks, vs, os, _apart(lse[..., None], count)[..., 0].contiguous(), cq, ck, mq, mk, 0.0, True, s, o
        )
        return dq + _whole(dq2, count), dkp, dvp, _whole(dkb, count), _whole(dvb, count), None


def _apart(t: Tensor, count: int) -> Tensor:
    """[B, H, count * R, D] as [B * count, H, R, D]."""
    b, h, rows, d = t.shape
    return t.view(b, h, count, rows // count, d).transpose(1, 2).reshape(b * count, h, rows // count, d)


def _whole(t: Tensor, count: int) -> Tensor:
    """The inverse of `_apart`."""
    b, h, rows, d = t.shape
    return t.view(b // count, count, h, rows, d).transpose(1, 2).reshape(b // count, h, count * rows, d)


def work(to: report.Report) -> None:
    """Measure each way at each length."""
    cuda = to.device == "cuda"
    heads, dim, prompts, branches = (2, 16, 1, 2) if to.dry else (32, 128, 8, 2)
    compiled: dict[str, Any] = {}
    for length in (160,) if to.dry else LENGTHS:
        branch = length // 10 // 8 * 8
        prefix = length - branches * branch
        made = [torch.randn(prompts, heads, length, dim, device=to.device, dtype=to.dtype) for _ in range(4)]
        q, k, v = (t.requires_grad_(True) for t in made[:3])
        grad = made[3]
        owner = torch.arange(length, device=to.device).sub(prefix).div(branch, rounding_mode="floor").clamp(min=-1)
        place = torch.arange(length, device=to.device)
        mask = (place[:, None] >= place[None, :]) & ((owner[None, :] == -1) | (owner[:, None] == owner[None, :]))
        lower = mask[prefix:]

        def dense() -> Tensor:
            return sdpa(q, k, v, attn_mask=mask)  # noqa: B023

        def two_calls() -> Tensor:
            first = sdpa(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix], is_causal=True)  # noqa: B023
            return torch.cat([first, sdpa(q[:, :, prefix:], k, v, attn_mask=lower)], dim=2)  # noqa: B023

        def merged() -> Tensor:
            p = slice(None, prefix)  # noqa: B023
            first = sdpa(q[:, :, p], k[:, :, p], v[:, :, p], is_causal=True)  # noqa: B023
            b = slice(prefix, None)  # noqa: B023
            rest = _Merged.apply(q[:, :, b], k[:, :, p], v[:, :, p], k[:, :, b], v[:, :, b], branches)  # noqa: B023
            return torch.cat([first, rest], dim=2)

        ways: dict[str, Callable[[], Tensor]] = {"dense": dense, "two_calls": two_calls}
        if cuda:
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention

            def rule(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                return (i >= j) & ((owner[j] == -1) | (owner[i] == owner[j]))  # noqa: B023

            compiled.setdefault("flex", torch.compile(flex_attention))
            blocks = create_block_mask(rule, None, None, length, length, device=to.device)
            ways |= {"flash_merged": merged, "flex": lambda: compiled["flex"](q, k, v, block_mask=blocks)}  # noqa: B023
        wanted: list[Tensor] = []
        for name, way in ways.items():
            with to.part(f"attention_{name}_{length}"):

                def both(way: Callable[[], Tensor] = way) -> Tensor:
                    q.grad = k.grad = v.grad = None  # noqa: B023
                    out = way()
                    out.backward(grad)  # noqa: B023
                    return out.detach()

                out = both()
                got = [out, *(t.grad.clone() for t in (q, k, v))]  # type: ignore[union-attr]
                wanted = wanted or got
                apart = max(
                    float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(got, wanted, strict=True)
                )
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                took = report.median(report.seconds_of(both, times=10, warmup=2))
                peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if cuda else 0.0
                to.row(
                    f"attention_{name}_{length}", 1e3 * took, "ms", "lower", against="dense mask, forward and backward",
                    relative_difference=apart, peak_mib=round(peak), prefix=prefix, branch=branch, prompts=prompts,
                )  # fmt: skip


if __name__ == "__main__":
    report.run("attention", work)
