"""DETR for segmentation: mask head, attention maps, frozen detectors, chosen queries, checkpoints."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detr_fast.checkpoints import LoadReport, load_state_dict, read_checkpoint
from detr_fast.criterion import SetCriterion, detection_weights
from detr_fast.matcher import HungarianMatcher
from detr_fast.models import DETR, DETRConfig, DETRSegm, DETRSegmConfig
from detr_fast.models.detr_segm import CHUNK, AttentionMap, MaskHead
from detr_fast.structures import PackedTargets, PaddedImages, Predictions
from tests.models.small import DETECTOR_SIZES, images
from tests.read_back import NoReadBack

SMALL = DETRSegmConfig(**DETECTOR_SIZES)


@pytest.fixture(scope="module")
def model() -> DETRSegm:
    torch.manual_seed(0)
    return DETRSegm(SMALL).eval()


def mask_head_ref(head: MaskHead, image: Tensor, maps: Tensor, finer: list[Tensor]) -> Tensor:
    """The head with everything repeated for each query."""
    queries = maps.shape[1]
    layer = head.get_submodule
    x = torch.cat((image.repeat_interleave(queries, 0), maps.flatten(0, 1)), dim=1)
    x = layer("gn1")(layer("lay1")(x)).relu()
    x = layer("gn2")(layer("lay2")(x)).relu()
    for n, features in enumerate(finer, start=1):
        adapted = layer(f"adapter{n}")(features).repeat_interleave(queries, 0)
        x = adapted + F.interpolate(x, size=adapted.shape[2:], mode="nearest")
        x = layer(f"gn{n + 2}")(layer(f"lay{n + 2}")(x)).relu()
    return layer("out_lay")(x).reshape(*maps.shape[:2], *x.shape[2:])


@pytest.mark.parametrize("levels", [2, 3])
def test_mask_head(levels: int, rng: torch.Generator) -> None:
    head = MaskHead(32, 4, [12, 8, 6][:levels]).double()
    queries, sizes = 2 * CHUNK + 1, [(3, 5), (6, 9), (11, 18), (22, 35)]

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True)

    image, maps = values(2, 32, *sizes[0]), values(2, queries, 4, *sizes[0])
    finer = [values(2, c, *size) for c, size in zip([12, 8, 6][:levels], sizes[1:], strict=False)]
    found, expected = head(image, maps, finer), mask_head_ref(head, image, maps, finer)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(head(image, maps, finer), expected)
        assert head(image, maps[:, :0], finer).shape == (2, 0, *sizes[levels])
    cotangent = torch.randn(found.shape, generator=rng, dtype=torch.float64)
    inputs = [image, maps, *finer, *head.parameters()]
    grads = [torch.autograd.grad(y, inputs, cotangent, retain_graph=True) for y in (found, expected)]
    for mine, reference in zip(*grads, strict=True):
        torch.testing.assert_close(mine, reference)


def test_attention_maps(rng: torch.Generator) -> None:
    """One distribution over heads, rows and columns together; none of it on padding."""
    attention = AttentionMap(16, 4)
    queries, memory = torch.randn(2, 3, 16, generator=rng), torch.randn(2, 16, 5, 6, generator=rng)
    mask = torch.zeros(2, 5, 6, dtype=torch.bool)
    mask[1, 3:], mask[1, :, 2:] = True, True
    maps = attention(queries, memory, mask)
    assert maps.shape == (2, 3, 4, 5, 6)
    torch.testing.assert_close(maps.sum((2, 3, 4)), torch.ones(2, 3))
    assert not maps[1, :, :, mask[1]].any()
    alone = attention(queries[1:], memory[1:, :, :3, :2], None)
    torch.testing.assert_close(maps[1:, :, :, :3, :2], alone)


@pytest.mark.parametrize("backbone", ["resnet18", "conv_stem_8"])
def test_shapes(backbone: str, rng: torch.Generator) -> None:
    model = DETRSegm(replace(SMALL, backbone=backbone)).eval()
    stride = 2 if backbone == "conv_stem_8" else 4
    for sizes in (((64, 96), (70, 50), (40, 40)), ((33, 1),), ((3, 5), (1, 1))):
        found = model(images(rng, *sizes))
        batch = len(sizes)
        padded = (-(-max(size[side] for size in sizes) // model.size_multiple) for side in (0, 1))
        height, width = (-(-side * model.size_multiple // stride) for side in padded)
        assert found.logits.shape == (2, batch, 6, 6)
        assert found.boxes.shape == (2, batch, 6, 4)
        assert found.masks is not None
        assert found.masks.shape == (1, batch, 6, height, width)
        assert all(x.isfinite().all() for x in (found.logits, found.boxes, found.masks))


def test_detector_within(model: DETRSegm, rng: torch.Generator) -> None:
    batch = images(rng, (64, 96), (50, 70))
    found, expected = model(batch), model.detr(batch)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.boxes, expected.boxes)
    last = DETRSegm(replace(SMALL, aux_loss=False)).eval()
    load_state_dict(last, model.state_dict())
    assert len(last(batch).logits) == 1
    torch.testing.assert_close(last(batch).masks, found.masks)


def test_order_of_images_does_not_matter(model: DETRSegm, rng: torch.Generator) -> None:
    batch = images(rng, (64, 96), (70, 50), (40, 40))
    found, backwards = model(batch).masks, model(batch[::-1]).masks
    assert found is not None
    assert backwards is not None
    torch.testing.assert_close(backwards.flip(1), found, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_masks_of_sure_queries_alone(model: DETRSegm, rng: torch.Generator) -> None:
    batch = images(rng, (64, 96), (50, 70))
    every = model(batch)
    scores = every.logits[-1].softmax(-1)[..., :-1].amax(-1)
    by_score = scores.flatten().sort().values
    for count in (0, 3, 7):
        least = float(by_score[-count - 1] + by_score[-count]) / 2 if count else 1.0
        sure = scores > least
        found = model(batch, min_score=least)
        queries = max(1, int(sure.sum(1).max()))
        assert found.logits.shape == (1, 2, queries, 6)
        assert found.masks is not None
        assert every.masks is not None
        for image in range(2):
            best = scores[image].topk(queries).indices.sort().values
            assert set(sure[image].nonzero()[:, 0].tolist()) <= set(best.tolist())
            torch.testing.assert_close(found.logits[0, image], every.logits[-1, image, best])
            torch.testing.assert_close(found.boxes[0, image], every.boxes[-1, image, best])
            torch.testing.assert_close(found.masks[0, image], every.masks[0, image, best])


def targets(rng: torch.Generator) -> list[dict[str, Tensor]]:
    masks = torch.rand(2, 64, 96, generator=rng) > 0.5
    some = {"labels": torch.tensor([1, 4]), "boxes": torch.rand(2, 4, generator=rng), "masks": masks}
    return [some, {key: value[:0] for key, value in some.items()}]


def total_loss(found: Predictions, rng: torch.Generator) -> Tensor:
    criterion = SetCriterion(
        5,
        HungarianMatcher(1, 5, 2),
        detection_weights(2, masks=True),
        losses=("labels", "boxes", "cardinality", "masks"),
    )
    return criterion.total(criterion(found, PackedTargets.from_list(targets(rng), (64, 96))))


@pytest.mark.parametrize("backbone", ["resnet18", "conv_stem"])
def test_training_step_reaches_every_parameter(backbone: str, rng: torch.Generator) -> None:
    torch.manual_seed(0)
    model = DETRSegm(replace(SMALL, backbone=backbone)).train()
    total_loss(model(images(rng, (64, 96), (50, 70))), rng).backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("detr.backbone.0.body.conv1", "detr.backbone.0.body.layer1"))
        assert (parameter.grad is None) == frozen, name
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


def test_frozen_detector(model: DETRSegm, rng: torch.Generator) -> None:
    """Loaded, it neither learns nor drops out, whatever mode the model is in."""
    torch.manual_seed(0)
    frozen = DETRSegm(replace(SMALL, frozen_detector=True, dropout=0.5))
    assert frozen.load_detector(model.detr.state_dict()) == LoadReport()
    batch = images(rng, (64, 96), (50, 70))
    frozen.train()
    assert frozen.mask_head.training
    assert not any(module.training for module in frozen.detr.modules())
    found = frozen(batch)
    torch.testing.assert_close(found.logits, model(batch).logits)
    assert not found.logits.requires_grad
    trained = [p for p in frozen.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {
        id(p) for part in (frozen.mask_head, frozen.bbox_attention) for p in part.parameters()
    }
    optimizer = torch.optim.SGD(trained, lr=0.1)
    total_loss(found, rng).backward()
    assert all(p.grad is None for p in frozen.detr.parameters())
    assert all(p.grad is not None for p in trained)
    before = found.masks
    optimizer.step()
    for name, value in model.detr.state_dict().items():
        assert torch.equal(frozen.detr.state_dict()[name], value), name
    assert not torch.equal(frozen(batch).masks, before)
    with pytest.raises(ValueError, match="expected the entries of this DETR; got what looks like a DETR for"):
        frozen.load_detector(model.state_dict())


def test_freezing_later(rng: torch.Generator) -> None:
    model = DETRSegm(SMALL).train()
    assert model.detr.training
    model.freeze_detector()
    assert not model.detr.training
    assert model.mask_head.training
    assert not any(p.requires_grad for p in model.detr.parameters())


@torch.no_grad()
def test_autocast_to_bfloat16(model: DETRSegm, rng: torch.Generator) -> None:
    batch = images(rng, (64, 96), (50, 70))
    expected = model(batch).masks
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(batch).masks
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.1 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_whole_model_in_another_dtype(dtype: torch.dtype, rng: torch.Generator) -> None:
    torch.manual_seed(0)
    model = DETRSegm(SMALL).eval()
    batch = torch.stack(images(rng, (64, 96)))
    expected = model(batch).masks
    found = model.to(dtype)(batch.to(dtype)).masks
    assert found.dtype == dtype
    tolerance = (1e-4 if dtype == torch.float64 else 0.1) * float(expected.abs().max())
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)


@torch.no_grad()
def test_one_graph(model: DETRSegm, rng: torch.Generator) -> None:
    batch = PaddedImages.from_list(images(rng, (64, 96), (50, 70)))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch).masks, model(batch).masks)


def test_nothing_is_read_back(rng: torch.Generator) -> None:
    model = DETRSegm(SMALL)
    batch = PaddedImages.from_list(images(rng, (64, 96), (50, 70)))
    with NoReadBack():
        found = model(batch).masks
        assert found is not None
        found.sum().backward()


def test_configuration(model: DETRSegm) -> None:
    args = argparse.Namespace(backbone="resnet101", masks=True, frozen_weights="detr.pth", num_queries=7)
    expected = DETRSegmConfig(backbone="resnet101", frozen_detector=True, num_queries=7, num_classes=250)
    assert DETRSegmConfig.from_official_args(args, num_classes=250) == expected
    args.frozen_weights = None
    assert DETRSegmConfig.from_official_args(vars(args), 250) == replace(expected, frozen_detector=False)
    with pytest.raises(ValueError, match="hidden_dim: expected at least 16, for the mask head; got 12"):
        replace(SMALL, hidden_dim=12)
    with pytest.raises(ValueError, match=r"state: expected a DETR for segmentation .*; got a DETR$"):
        DETRSegmConfig.from_state_dict(model.detr.state_dict())
    with pytest.raises(ValueError, match="expected the entries of this DETRSegm; got what looks like a DETR"):
        load_state_dict(model, model.detr.state_dict())
    assert isinstance(DETRConfig.from_state_dict(model.detr.state_dict(), nheads=4), DETRConfig)


def test_checkpoint_round_trip(model: DETRSegm, tmp_path: Path, rng: torch.Generator) -> None:
    torch.save({"model": model.state_dict()}, tmp_path / "c.pth")
    state = read_checkpoint(tmp_path / "c.pth")
    again = DETRSegm(DETRSegmConfig.from_state_dict(state)).eval()
    assert again.config == SMALL
    assert load_state_dict(again, state) == LoadReport()
    batch = images(rng, (64, 64))
    assert torch.equal(again(batch).masks, model(batch).masks)


def test_fine_tuning_on_other_classes(model: DETRSegm) -> None:
    report = load_state_dict(DETRSegm(replace(SMALL, num_classes=2)), model.state_dict())
    assert report == LoadReport(resized=("detr.class_embed.bias", "detr.class_embed.weight"))


def test_backbone_weights(model: DETRSegm, tmp_path: Path) -> None:
    torch.save(model.detr.backbone[0].body.state_dict(), tmp_path / "resnet18.pth")
    started = DETRSegm(SMALL, backbone_weights=tmp_path / "resnet18.pth")
    for name, value in model.detr.backbone.state_dict().items():
        assert torch.equal(started.detr.backbone.state_dict()[name], value)
    assert isinstance(started.detr, DETR)
