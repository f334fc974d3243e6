"""The fused attention is the formula, in values and gradients."""

import pytest
import torch

from peerformer.kernels.attention import causal_attention, causal_attention_reference

CASES = [  # B, H, G, T, S, K
    (2, 4, 2, 7, 7, 8),
    (1, 4, 4, 1, 1, 2),
    (3, 6, 1, 5, 9, 4),
    (2, 6, 2, 1, 13, 16),
    (1, 2, 2, 33, 33, 6),
    (2, 3, 3, 4, 5, 8),
    (0, 2, 1, 3, 3, 4),
]


def make(case, dtype, seed=0):
    B, H, G, T, S, K = case
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, T, H, K), (B, S, G, K), (B, S, G, K)
    return [
        torch.randn(shape, generator=generator).transpose(1, 2).to(dtype).requires_grad_()
        for shape in shapes
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_and_its_gradients_equal_the_formula(case, dtype):
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 3e-2}[dtype]
    fast, plain = make(case, dtype), make(case, torch.float64)
    outputs = causal_attention(*fast), causal_attention_reference(*plain)
    assert outputs[0].dtype == dtype and outputs[0].shape == outputs[1].shape
    weights = torch.randn(outputs[1].shape, generator=torch.Generator().manual_seed(1))
    for output in outputs:
        (output * weights.to(output.dtype)).sum().backward()
    pairs = zip(
        [outputs[0], *(x.grad for x in fast)], [outputs[1], *(x.grad for x in plain)], strict=True
    )
    for found, expected in pairs:
        scale = 1.0 + (expected.abs().max().item() if expected.numel() else 0.0)
        torch.testing.assert_close(
            found.double(), expected.double(), rtol=0, atol=tolerance * scale
        )


def test_no_query_sees_a_later_key():
    q, k, v = make((1, 2, 1, 6, 6, 4), torch.float32)
    before = causal_attention(q, k, v)
    with torch.no_grad():
        k[:, :, 4:] += 10
        v[:, :, 4:] += 10
    after = causal_attention(q, k, v)
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.allclose(before[:, :, 4:], after[:, :, 4:])
