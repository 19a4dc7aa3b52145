"""What people do with any module: trace, export, copy, pickle it, call it with other parameters."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detr_fast.models import DETR, DETRConfig, DETRSegm, DETRSegmConfig
from detr_fast.models.resnet import ResNet
from detr_fast.models.swin import Swin, SwinSizes
from detr_fast.structures import PaddedImages
from tests.models.small import SIZES, SMALL

MODELS: dict[str, Callable[[], nn.Module]] = {
    **{name: make for name, make in SMALL.items() if name != "deformable-detr-refine"},
    "detr-learned-positions": lambda: DETR(DETRConfig(**SIZES, position_embedding="learned", pre_norm=True)),
    "resnet": lambda: Backbone(ResNet("resnet18")),
    "swin": lambda: Backbone(Swin(SwinSizes(16, (2, 2), (2, 4), window_size=4))),
}


class Backbone(nn.Module):
    """A backbone, called as the models are."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: PaddedImages) -> list[Tensor]:
        return self.body(images.tensors)


class Flat(nn.Module):
    """Takes and returns tensors alone, as traces do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(self.model(PaddedImages(pixels, mask))))


def tensors(output: Any) -> Iterable[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif is_dataclass(output):
        for field in fields(output):
            yield from tensors(getattr(output, field.name))
    elif output is not None:
        for part in output:
            yield from tensors(part)


def batch(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two images, of which one or both are padded, in the same padded size each time."""
    mask = torch.ones(2, 64, 96, dtype=torch.bool)
    for image in mask:
        height, width = (int(torch.randint(side // 2, side + 1, (), generator=rng)) for side in (64, 96))
        image[:height, :width] = False
    return torch.randn(2, 3, 64, 96, generator=rng) * ~mask[:, None], mask


def fill_free_memory() -> None:
    """Leaves sevens where the allocator will find memory for what nobody fills."""
    kept = [torch.full((size,), 7.0) for size in range(1, 60000, 97)]
    del kept


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, rng: torch.Generator) -> nn.Module:
    """In evaluation, every weight random: some start at zero and would hide what comes before them."""
    model = MODELS[request.param]().eval()
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=rng)
        parameter.data.copy_(noise / max(1, parameter[0].numel()) ** 0.5)
    return model


def assert_same(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_trace(model: nn.Module, rng: torch.Generator) -> None:
    """Of one batch, with gradients and, to check it, without; right for another batch of its shape."""
    flat = Flat(model)
    traced = torch.jit.trace(flat, batch(rng))
    with torch.no_grad():
        other = batch(rng)
        fill_free_memory()
        assert_same(traced(*other), flat(*other))


@torch.no_grad()
def test_export(model: nn.Module, rng: torch.Generator) -> None:
    flat = Flat(model)
    exported = torch.export.export(flat, batch(rng), strict=False).module()
    other = batch(rng)
    fill_free_memory()
    assert_same(exported(*other), flat(*other))


@pytest.mark.parametrize("model", ["deformable-detr-two-stage", "dino", "mask2former"], indirect=True)
@torch.no_grad()
def test_exported_files_take_and_return_what_models_do(model: nn.Module, rng: torch.Generator) -> None:
    images, other = (PaddedImages(*batch(rng)) for _ in range(2))
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (images,), strict=False), file)
    file.seek(0)
    found, expected = torch.export.load(file).module()(other), model(other)
    assert type(found) is type(expected)
    assert_same(tensors(found), tensors(expected))


@torch.no_grad()
def test_copies(model: nn.Module, rng: torch.Generator) -> None:
    """A deep copy, a pickle and a saved file; none of them shares memory with the model."""
    images = PaddedImages(*batch(rng))
    expected = [x.clone() for x in tensors(model(images))]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ]
    for parameter in model.parameters():
        parameter.zero_()
    for copy in copies:
        assert list(copy.state_dict()) == list(model.state_dict())
        for x, y in zip(tensors(copy(images)), expected, strict=True):
            assert torch.equal(x, y)


def test_other_parameters(model: nn.Module, rng: torch.Generator) -> None:
    """`torch.func.functional_call` with parameters that are plain tensors, and the gradient of them."""
    images = PaddedImages(*batch(rng))
    other = deepcopy(model).requires_grad_()
    for parameter in other.parameters():
        parameter.data.mul_(1.25)
    values = {name: parameter.detach().clone() for name, parameter in other.named_parameters()}
    with torch.no_grad():
        assert_same(tensors(torch.func.functional_call(model, values, (images,))), tensors(other(images)))

    def total(out: Any) -> Tensor:
        return torch.stack([x.clamp(-9, 9).square().mean() for x in tensors(out)]).sum()

    leaves = {name: value.requires_grad_() for name, value in values.items()}
    found = torch.autograd.grad(
        total(torch.func.functional_call(model, leaves, (images,))), list(leaves.values()), allow_unused=True
    )
    parameters = dict(other.named_parameters())
    expected = torch.autograd.grad(
        total(other(images)), [parameters[name] for name in leaves], allow_unused=True
    )
    for name, x, y in zip(leaves, found, expected, strict=True):
        assert (x is None) == (y is None), name
        if x is not None:
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traces_do_not_keep_a_number_of_masks(rng: torch.Generator) -> None:
    model = DETRSegm(DETRSegmConfig(**SIZES)).eval().requires_grad_(False)
    with pytest.raises(ValueError, match="min_score: expected None; a trace would keep"):
        torch.jit.trace(lambda pixels: model(pixels, min_score=0.5).masks, batch(rng)[:1])
