"""The backbone: folded norms, strides, freezing, torchvision files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_fast.checkpoints import write_checkpoint
from detr_fast.models.resnet import ARCHITECTURES, FrozenBatchNorm2d, ResNet


def randomize_norms(model: nn.Module, rng: torch.Generator) -> None:
    """Statistics and affine terms other than the identity."""
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for name, low, high in (
                ("weight", 0.5, 1.0),
                ("bias", -0.2, 0.2),
                ("running_mean", -0.2, 0.2),
                ("running_var", 0.8, 1.5),
            ):
                buffer = getattr(module, name)
                buffer.copy_(low + (high - low) * torch.rand(buffer.shape, generator=rng))


def features_ref(state: dict[str, Tensor], name: str, x: Tensor, dilation: bool) -> list[Tensor]:
    """ResNet v1.5 straight from its state dict, norms after convolutions."""

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int = 1, dilate: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        padding = dilate * (weight.shape[-1] // 2)
        x = F.conv2d(x, weight, None, stride, padding, dilate)
        affine = [state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *affine, training=False, eps=1e-5)

    x = conv_norm(x, "conv1", "bn1", stride=2).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    features = []
    for stage, depth in enumerate(ARCHITECTURES[name].depths, start=1):
        for i in range(depth):
            block = f"layer{stage}.{i}"
            stride, dilate = (2, 1) if stage > 1 and i == 0 else (1, 1)
            if dilation and stage == 4:
                stride, dilate = 1, 1 if i == 0 else 2
            y = x
            if ARCHITECTURES[name].bottleneck:
                y = conv_norm(y, f"{block}.conv1", f"{block}.bn1").relu()
                y = conv_norm(y, f"{block}.conv2", f"{block}.bn2", stride, dilate).relu()
                y = conv_norm(y, f"{block}.conv3", f"{block}.bn3")
            else:
                y = conv_norm(y, f"{block}.conv1", f"{block}.bn1", stride).relu()
                y = conv_norm(y, f"{block}.conv2", f"{block}.bn2")
            if f"{block}.downsample.0.weight" in state:
                x = conv_norm(x, f"{block}.downsample.0", f"{block}.downsample.1", stride)
            x = (x + y).relu()
        features.append(x)
    return features


@pytest.mark.parametrize(("name", "dilation"), [("resnet18", False), ("resnet34", False), ("resnet50", True)])
def test_features_and_gradients(name: str, dilation: bool, rng: torch.Generator) -> None:
    model = ResNet(name, dilation)
    randomize_norms(model, rng)
    model.double()
    images = torch.randn(2, 3, 50, 70, generator=rng, dtype=torch.float64)
    found = model(images)
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    for key in trained:
        state[key].requires_grad_()
    expected = features_ref(state, name, images, dilation)
    for mine, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, reference)
    cotangent = torch.randn(found[-1].shape, generator=rng, dtype=torch.float64)
    (found[-1] * cotangent).sum().backward()
    (expected[-1] * cotangent).sum().backward()
    for key in trained:
        torch.testing.assert_close(model.get_parameter(key).grad, state[key].grad)


@pytest.mark.parametrize("name", ["resnet18", "resnet101"])
def test_strides_channels_and_frozen_stages(name: str) -> None:
    model = ResNet(name)
    with torch.no_grad():
        features = model(torch.zeros(1, 3, 64, 96))
    assert tuple(f.shape[1] for f in features) == model.channels
    assert [tuple(f.shape[2:]) for f in features] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    frozen = {key.split(".")[0] for key, p in model.named_parameters() if not p.requires_grad}
    trained = {key.split(".")[0] for key, p in model.named_parameters() if p.requires_grad}
    assert (frozen, trained) == ({"conv1", "layer1"}, {"layer2", "layer3", "layer4"})


def test_only_bottlenecks_dilate() -> None:
    with pytest.raises(ValueError, match=r"dilation: .*bottleneck"):
        ResNet("resnet18", dilation=True)
    with pytest.raises(ValueError, match=r"name: expected one of resnet18.*'resnet20'"):
        ResNet("resnet20")


def torchvision_state(model: ResNet) -> dict[str, Tensor]:
    """What a torchvision file holds beside our entries."""
    state = dict(model.state_dict())
    norms = [key.removesuffix("running_mean") for key in state if key.endswith("running_mean")]
    state |= {f"{norm}num_batches_tracked": torch.tensor(7) for norm in norms}
    return state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def test_torchvision_file(tmp_path: Path, rng: torch.Generator) -> None:
    given, model = ResNet("resnet18"), ResNet("resnet18")
    randomize_norms(given, rng)
    torch.save(torchvision_state(given), tmp_path / "resnet18.pth")
    model.load_official(tmp_path / "resnet18.pth")
    for key, value in given.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_torchvision_file_of_another_resnet(tmp_path: Path) -> None:
    torch.save(torchvision_state(ResNet("resnet18")), tmp_path / "resnet18.pth")
    with pytest.raises(
        ValueError,
        match=r"resnet18.pth: .*this ResNet; .*a ResNet.*missing: layer1.0.bn3.bias.* of another shape",
    ):
        ResNet("resnet50").load_official(tmp_path / "resnet18.pth")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_names_of_detectron2(name: str, tmp_path: Path, rng: torch.Generator) -> None:
    """The same network under either naming, from files of either; detectron2's are pickled arrays."""
    given, named = ResNet(name), ResNet(name, detectron2=True, frozen=False)
    randomize_norms(given, rng)
    torch.save(torchvision_state(given), tmp_path / "torchvision.pth")
    named.load_official(tmp_path / "torchvision.pth")
    entries = dict(named.state_dict())
    assert {"stem.conv1.norm.weight", "res2.0.conv1.norm.running_var", "res5.0.shortcut.norm.bias"} <= set(
        entries
    )
    images = torch.randn(1, 3, 40, 50, generator=rng)
    for found, expected in zip(named(images), given(images), strict=True):
        assert torch.equal(found, expected)
    assert all(parameter.requires_grad for parameter in named.parameters())
    write_checkpoint({**entries, "stem.fc.weight": torch.zeros(1000, 512)}, tmp_path / "R.pkl")
    back = ResNet(name)
    back.load_official(tmp_path / "R.pkl")
    for key, value in given.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key
