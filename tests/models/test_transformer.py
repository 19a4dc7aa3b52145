"""The transformer against PyTorch's own layers, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detr_fast.models.position_encoding import PositionEncodingLearned, PositionEncodingSine
from detr_fast.models.transformer import DecoderLayer, EncoderLayer, MultiheadAttention, Transformer

B, C, H, S, Q = 2, 32, 4, 11, 5


def normal(*shape: int, rng: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def padding_mask(rng: torch.Generator) -> Tensor:
    """[B, S], True = padding; every image keeps its first position."""
    mask = torch.rand(B, S, generator=rng) < 0.4
    mask[:, 0] = False
    return mask


@pytest.mark.parametrize("shared", [True, False], ids=["self", "cross"])
def test_attention(shared: bool, rng: torch.Generator) -> None:
    mine = MultiheadAttention(C, H).double()
    torchs = nn.MultiheadAttention(C, H, batch_first=True, dtype=torch.float64)
    nn.init.normal_(torchs.in_proj_bias)
    mine.load_state_dict(torchs.state_dict())
    key = normal(B, S, C, rng=rng)
    query = key if shared else normal(B, Q, C, rng=rng)
    value, mask = normal(B, S, C, rng=rng), padding_mask(rng)
    expected = torchs(query, key, value, key_padding_mask=mask, need_weights=False)[0]
    torch.testing.assert_close(mine(query, key, value, ~mask), expected)
    torch.testing.assert_close(mine(query, key, value), torchs(query, key, value)[0])


@pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_layers_without_positions(pre_norm: bool, activation: str, rng: torch.Generator) -> None:
    """With zero positions a layer is PyTorch's, with the same names."""
    sizes = {"d_model": C, "nhead": H, "dim_feedforward": 48, "dropout": 0.0, "activation": activation}
    options = {"batch_first": True, "norm_first": pre_norm, "dtype": torch.float64}
    memory, x, mask = normal(B, S, C, rng=rng), normal(B, Q, C, rng=rng), padding_mask(rng)

    torchs = nn.TransformerEncoderLayer(**sizes, **options)
    mine = EncoderLayer(C, H, 48, 0.0, activation, pre_norm).double()
    mine.load_state_dict(torchs.state_dict())
    expected = torchs(memory, src_key_padding_mask=mask)
    torch.testing.assert_close(mine(memory, torch.zeros_like(memory), ~mask), expected)

    torchs = nn.TransformerDecoderLayer(**sizes, **options)
    mine = DecoderLayer(C, H, 48, 0.0, activation, pre_norm).double()
    mine.load_state_dict(torchs.state_dict())
    expected = torchs(x, memory, memory_key_padding_mask=mask)
    torch.testing.assert_close(mine(x, torch.zeros_like(x), memory, memory, ~mask), expected)


def make_transformer(**options) -> Transformer:
    return Transformer(C, H, 2, 3, 48, dropout=0.0, **options).double()


@pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])
def test_padding_does_not_matter(pre_norm: bool, rng: torch.Generator) -> None:
    """An image in a padded batch gives what it gives alone, whatever stands in the padding."""
    model, encoding = make_transformer(pre_norm=pre_norm), PositionEncodingSine(C)
    queries = normal(Q, C, rng=rng)
    features, valid = normal(B, C, 5, 7, rng=rng), [(5, 4), (3, 7)]
    mask = torch.ones(B, 5, 7, dtype=torch.bool)
    for b, (h, w) in enumerate(valid):
        mask[b, :h, :w] = False
    features.masked_fill_(mask[:, None], 1e3)
    hs, _ = model(features, queries, encoding(mask).double(), mask)
    assert hs.shape == (3, B, Q, C)
    for b, (h, w) in enumerate(valid):
        alone = encoding(torch.zeros(1, h, w, dtype=torch.bool)).double()
        expected, _ = model(features[b : b + 1, :, :h, :w], queries, alone)
        torch.testing.assert_close(hs[:, b], expected[:, 0])


def test_positions_matter(rng: torch.Generator) -> None:
    model, encoding = make_transformer(), PositionEncodingSine(C)
    features, queries = normal(1, C, 4, 6, rng=rng), normal(Q, C, rng=rng)
    position = encoding(torch.zeros(1, 4, 6, dtype=torch.bool)).double()
    hs, _ = model(features, queries, position)
    shuffled = torch.randperm(24, generator=rng)

    def shuffle(x: Tensor) -> Tensor:
        return x.flatten(2)[..., shuffled].unflatten(2, (4, 6))

    torch.testing.assert_close(model(shuffle(features), queries, shuffle(position))[0], hs)
    assert not torch.allclose(model(shuffle(features), queries, position)[0], hs, atol=1e-3)


def test_gated_activation_and_dropout(rng: torch.Generator) -> None:
    model = Transformer(C, H, 1, 1, 48, dropout=0.5, activation="glu")
    inputs = [torch.randn(*shape, generator=rng) for shape in ((1, C, 3, 4), (Q, C), (1, C, 3, 4))]
    assert not torch.equal(model(*inputs)[0], model(*inputs)[0])
    model.eval()
    assert torch.equal(model(*inputs)[0], model(*inputs)[0])


def test_initialisation() -> None:
    model = Transformer(64, 8, 1, 1, 256)
    attention = model.encoder.layers[0].self_attn
    bound = (6 / (64 + 3 * 64)) ** 0.5  # xavier uniform
    assert attention.in_proj_weight.abs().max() <= bound
    assert attention.in_proj_weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not attention.in_proj_bias.any()
    assert not attention.out_proj.bias.any()


def test_learned_encoding() -> None:
    encoding = PositionEncodingLearned(6, size=8)
    found = encoding(torch.zeros(2, 3, 5, dtype=torch.bool))
    assert found.shape == (2, 6, 3, 5)
    assert torch.equal(found[1, :3, 2, 4], encoding.col_embed.weight[4])
    assert torch.equal(found[0, 3:, 2, 4], encoding.row_embed.weight[2])
    with pytest.raises(ValueError, match="at most 8 rows and columns; got 3 x 9"):
        encoding(torch.zeros(1, 3, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="channels: expected an even number; got 5"):
        PositionEncodingLearned(5)
    with pytest.raises(ValueError, match="channels: expected a multiple of 4; got 6"):
        PositionEncodingSine(6)
