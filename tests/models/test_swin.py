"""The Swin backbone: shifted windows, sizes, stochastic depth, Microsoft's files."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detr_fast.checkpoints import load_state_dict
from detr_fast.models import DETR, DETRConfig
from detr_fast.models.backbones import backbone_in, build_body
from detr_fast.models.swin import ARCHITECTURES, Block, Swin, SwinSizes, resample_bias, shifted_apart
from tests.read_back import NoReadBack

SMALL = SwinSizes(8, (2, 2, 2, 2), (2, 2, 4, 4), window_size=3)


@pytest.fixture(scope="module")
def model() -> Swin:
    torch.manual_seed(0)
    return Swin(SMALL).eval()


def attention_ref(block: Block, x: Tensor) -> Tensor:
    """Attention of a block among all tokens of its padded map at once, without windows."""
    attn, window, shift = block.attn, block.window, block.shift
    height, width = (-(-size // window) * window for size in x.shape[1:3])
    y = x.new_zeros(len(x), height, width, x.shape[3])
    y[:, : x.shape[1], : x.shape[2]] = block.norm1(x)
    rows, columns = (
        at.flatten() for at in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    logit_bias = x.new_full((attn.heads, height * width, height * width), -torch.inf)
    rolled = [(at - shift) % size for at, size in ((rows, height), (columns, width))]
    same = torch.ones(height * width, height * width, dtype=torch.bool)
    apart, index = torch.zeros_like(same), torch.zeros_like(same, dtype=torch.int64)
    for at, place in zip((rows, columns), rolled, strict=True):
        same &= (place // window)[:, None] == (place // window)[None]
        # those that the roll brought from the top or left are strangers to the others of their window
        apart |= (at < shift)[:, None] != (at < shift)[None]
        index = index * (2 * window - 1) + place[:, None] - place[None] + window - 1
    bias = attn.relative_position_bias_table[index.where(same, 0)].permute(2, 0, 1) - 100 * apart.to(x)
    logit_bias = torch.where(same, bias, logit_bias)
    q, k, v = attn.qkv(y.flatten(1, 2)).unflatten(-1, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT * q.shape[-1] ** -0.5 + logit_bias).softmax(-1)
    y = attn.proj((weights @ v).transpose(1, 2).flatten(2)).unflatten(1, (height, width))
    return x + y[:, : x.shape[1], : x.shape[2]]


@pytest.mark.parametrize("size", [(6, 9), (7, 5), (2, 1)], ids=["whole", "padded", "smaller"])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_windows(size: tuple[int, int], shift: int, rng: torch.Generator) -> None:
    """Attention within shifted windows, its -100 across borders, and gradients."""
    window = 2 * shift + 1 if shift else 3
    block = Block(8, 2, window, shift, hidden=16, qkv_bias=True, drop=0.0).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    x = torch.randn(2, *size, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    found = block(x, shifted_apart(*size, window, x.device))
    expected = attention_ref(block, x)
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(found.shape, generator=rng, dtype=torch.float64)
    inputs = [x, *block.parameters()]
    grads = [torch.autograd.grad(y, inputs, cotangent, retain_graph=True) for y in (found, expected)]
    for mine, reference in zip(*grads, strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("size", [(1, 1), (33, 50), (70, 41)])
def test_strides_and_layout(model: Swin, size: tuple[int, int], rng: torch.Generator) -> None:
    features = model(torch.randn(2, 3, *size, generator=rng))
    assert model.channels == (8, 16, 32, 64)
    height, width = (-(-side // 4) for side in size)
    for x, channels in zip(features, model.channels, strict=True):
        assert x.shape == (2, channels, height, width)
        assert x.flatten(2).transpose(1, 2).is_contiguous()
        height, width = -(-height // 2), -(-width // 2)


@pytest.mark.parametrize(
    ("name", "classifier"), [("swin_t", 28_288_354), ("swin_s", 49_606_258), ("swin_b", 87_768_224)]
)
def test_parameters(name: str, classifier: int) -> None:
    """As many as the published classifiers have, norms and 1000 classes aside."""
    with torch.device("meta"):
        model = Swin(name)
    last = model.channels[-1]
    count = classifier - 1000 * (last + 1) - 2 * last + 2 * sum(model.channels)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_told_by_shapes(name: str) -> None:
    with torch.device("meta"):
        model = build_body(name, False, None)
    assert backbone_in({f"backbone.{key}": t for key, t in model.state_dict().items()}, "backbone.") == name


def test_unknown_sizes(model: Swin) -> None:
    with pytest.raises(StopIteration):
        backbone_in(model.state_dict(), "")
    with pytest.raises(ValueError, match=r"sizes: expected one of swin_t.*; got 'swin_x'"):
        Swin("swin_x")
    with pytest.raises(ValueError, match=r"drop_path: expected 0 <= drop_path < 1; got 1"):
        Swin(SMALL, drop_path=1)
    for field, value in (
        ("num_heads", (2, 2)),
        ("num_heads", (3, 2, 2, 2)),
        ("window_size", 1),
        ("depths", ()),
    ):
        with pytest.raises(ValueError, match=rf"^(num_heads|{field}): expected"):
            replace(SMALL, **{field: value})


def test_stochastic_depth(rng: torch.Generator) -> None:
    torch.manual_seed(1)
    model = Swin(SMALL, drop_path=0.5)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    torch.testing.assert_close([b.drop for b in blocks], torch.linspace(0, 0.5, 8).tolist())
    x, last = torch.randn(64, 3, 3, 64, generator=rng), blocks[-1]
    apart = shifted_apart(3, 3, 3, x.device)
    kept = (last(x, apart) - x).flatten(1).abs().amax(1) > 0
    assert 24 < int(kept.sum()) < 64  # three quarters of the images keep one branch at least
    images = torch.randn(1, 3, 40, 40, generator=rng)
    assert not torch.equal(model(images)[-1], model(images)[-1])
    model.eval()
    assert torch.equal(model(images)[-1], model(images)[-1])
    mean = torch.stack([last.train()._drop_path(torch.ones(1000, 1, 1, 1)).mean() for _ in range(4)]).mean()
    assert float(mean) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype, rng: torch.Generator) -> None:
    torch.manual_seed(0)
    model, images = Swin(SMALL).eval(), torch.randn(2, 3, 40, 56, generator=rng)
    expected = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        autocast = model(images)
    tolerance = 1e-4 if dtype == torch.float64 else 0.1
    for results in (model.to(dtype)(images.to(dtype)), autocast):
        for found, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(found.float(), wanted, rtol=tolerance, atol=tolerance)


def test_one_graph(model: Swin, rng: torch.Generator) -> None:
    images = torch.randn(2, 3, 40, 56, generator=rng)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images)[-1], model(images)[-1])


def test_nothing_is_read_back(rng: torch.Generator) -> None:
    model = Swin(SMALL)
    with NoReadBack():
        torch.stack([x.sum() for x in model(torch.randn(2, 3, 40, 56, generator=rng))]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def microsoft_state(model: Swin) -> dict[str, Tensor]:
    """What Microsoft's file of a classifier holds."""
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("norm")}
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        attention = name.removesuffix("relative_position_bias_table")
        state[f"{attention}relative_position_index"] = torch.zeros(9, 9, dtype=torch.int64)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 9, 9)
    for name in ("norm.weight", "norm.bias", "head.weight", "head.bias"):
        state[name] = torch.zeros(7)
    return state


def test_microsoft_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given, model = Swin(SMALL), Swin(SMALL)
    torch.save({"model": microsoft_state(given)}, tmp_path / "swin.pth")
    model.load_official(tmp_path / "swin.pth")
    assert not caplog.records
    for key, value in model.state_dict().items():
        assert torch.equal(value, given.state_dict()[key]), key
    with pytest.raises(ValueError, match=r"swin\.pth: .*this Swin; .*a Swin.*missing: .*of another shape"):
        Swin("swin_t").load_official(tmp_path / "swin.pth")


def test_windows_of_another_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Starting from a classifier resamples its biases; a trained model's have to fit."""
    given, model = Swin(SMALL), Swin(replace(SMALL, window_size=5))
    torch.save({"model": microsoft_state(given)}, tmp_path / "swin.pth")
    with caplog.at_level(logging.WARNING):
        model.load_official(tmp_path / "swin.pth")
    assert "resampled to another window size" in caplog.text
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert torch.equal(model.state_dict()[name], resample_bias(given.state_dict()[name], 81))
    with pytest.raises(ValueError, match=rf"of another shape: {name} \[25, 2\], expected \[81, 2\]"):
        load_state_dict(model, given.state_dict())


def test_resampled_biases(rng: torch.Generator) -> None:
    """A slope nearly stays one, away from the borders; one and the same size changes nothing."""
    slope = torch.arange(13.0)[:, None].expand(13, 13).reshape(-1, 1) * torch.tensor([1.0, -2.0])
    found = resample_bias(slope, 23 * 23).reshape(23, 23, 2)
    expected = (torch.arange(23) + 0.5) * 13 / 23 - 0.5
    torch.testing.assert_close(found[5:-5, 4, 0], expected[5:-5], rtol=0, atol=0.1)
    torch.testing.assert_close(found[..., 1], -2 * found[..., 0])
    table = torch.randn(25, 3, generator=rng)
    torch.testing.assert_close(resample_bias(table, 25), table)


def test_detector_on_swin(rng: torch.Generator) -> None:
    """The family's models take it by name, and read its size from a state dict."""
    config = DETRConfig(
        backbone="swin_t",
        hidden_dim=32,
        nheads=4,
        enc_layers=1,
        dec_layers=1,
        dim_feedforward=32,
        num_queries=3,
    )
    model = DETR(config).eval()
    assert DETRConfig.from_state_dict(model.state_dict(), nheads=4) == config
    with torch.no_grad():
        found = model([torch.randn(3, 50, 70, generator=rng), torch.randn(3, 64, 33, generator=rng)])
    assert found.logits.isfinite().all()
    with pytest.raises(ValueError, match="dilation: expected a backbone with bottlenecks; got swin_t"):
        replace(config, dilation=True)
