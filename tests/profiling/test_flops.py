"""The operations of attention, forward and backward."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from brain_dist.profiling.flops import counted_flops


def test_attention_counts_in_both_directions() -> None:
    batch, heads, tokens, width = 2, 3, 20, 8
    q, k, v = (torch.randn(batch, heads, tokens, width, requires_grad=True) for _ in range(3))
    product = 2 * batch * heads * tokens * tokens * width  # of two matrices: a multiplication and an addition
    with counted_flops() as forward:
        result = scaled_dot_product_attention(q, k, v)
    assert forward.get_total_flops() == 2 * product
    with counted_flops() as both:
        scaled_dot_product_attention(q, k, v).sum().backward()
    assert both.get_total_flops() == 3 * 2 * product
    torch.testing.assert_close(result, scaled_dot_product_attention(q, k, v))
