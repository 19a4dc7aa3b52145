"""Patches of whole libraries: what is built and called under them, and what they leave alone."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

import detr_fast
from detr_fast.boxes import box_xyxy_to_cxcywh, generalized_box_iou
from detr_fast.integrations import (
    assigner,
    attention_forms,
    detr,
    detrex,
    mmcv,
    mmdet,
    ms_deform_attn,
    rfdetr,
)
from detr_fast.integrations.patching import Patch
from tests.integrations import standins


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package of stand-ins, imported."""
    module = ModuleType("standins_of_a_library")
    kinds = {
        "MSDeformAttn": standins.MSDeformAttn,
        "MultiScaleDeformableAttention": standins.MultiScaleDeformableAttention,
    }
    for name, base in kinds.items():

        def init(self: Any, base: Any = base) -> None:
            base.__init__(self)

        vars(module)[name] = type(name, (base,), {"__module__": module.__name__, "__init__": init})
    vars(module).update(
        MSDeformAttnFunction=standins.MSDeformAttnFunction,
        ms_deform_attn_core_pytorch=core,
        number=3,
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def core(value, value_spatial_shapes, sampling_locations, attention_weights):
    return standins.sampled(value, value_spatial_shapes, sampling_locations, attention_weights)


def channels_first(
    value, value_spatial_shapes, sampling_locations, attention_weights, value_spatial_shapes_hw=None
):
    if sampling_locations.ndim == 5:
        return "merged levels"
    shapes = value_spatial_shapes if value_spatial_shapes_hw is None else value_spatial_shapes_hw
    return core(value.permute(0, 3, 1, 2), shapes, sampling_locations, attention_weights)


def test_what_is_built_under_a_patch_is_accelerated(library: ModuleType) -> None:
    inits = [library.MSDeformAttn.__init__, library.MultiScaleDeformableAttention.__init__]
    before = library.MSDeformAttn()
    patch = Patch("stand-ins", library.__name__)
    with patch.patched() as report:
        assert {path.partition(".")[2] for path, _ in report.replaced} == {
            "MSDeformAttn",
            "MultiScaleDeformableAttention",
            "ms_deform_attn_core_pytorch",
        }
        assert [path.partition(".")[2] for path, _ in report.skipped] == ["MSDeformAttnFunction"]
        built = library.MSDeformAttn()
        assert isinstance(built, attention_forms.OfficialAttention)
        assert isinstance(library.MultiScaleDeformableAttention(), attention_forms.MMCVAttention)
        again = patch.patch()
        assert not again.replaced
        assert [reason for _, reason in again.skipped].count("already accelerated") == 3
    assert not isinstance(before, attention_forms.Form)
    assert not isinstance(library.MSDeformAttn(), attention_forms.Form)
    assert [library.MSDeformAttn.__init__, library.MultiScaleDeformableAttention.__init__] == inits
    assert library.ms_deform_attn_core_pytorch is core


def test_a_subclass_with_a_constructor_of_its_own_is_left_to_accelerate(library: ModuleType) -> None:
    class Wider(library.MSDeformAttn):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Linear(2, 2)

    with Patch("stand-ins", library.__name__).patched():
        assert not isinstance(Wider(), attention_forms.Form)  # the patch knows no class of the script


@pytest.mark.parametrize("function", [core, channels_first])
def test_functions_that_sample(library: ModuleType, function: Any) -> None:
    library.ms_deform_attn_core_pytorch = function
    shapes = torch.tensor([[3, 4], [2, 2]])
    value, weights = torch.randn(2, 16, 3, 8), torch.rand(2, 5, 3, 2, 4)
    locations = torch.rand(2, 5, 3, 2, 4, 2)
    if function is channels_first:
        value = value.permute(0, 2, 3, 1)
    expected = function(value, shapes, locations, weights)
    with Patch("stand-ins", library.__name__).patched():
        replaced = library.ms_deform_attn_core_pytorch
        assert replaced is not function
        torch.testing.assert_close(replaced(value, shapes, locations, weights), expected)
        if function is channels_first:
            hw = [(3, 4), (2, 2)]
            torch.testing.assert_close(replaced(value, shapes, locations, weights, hw), expected)
            assert replaced(value, shapes, locations.flatten(3, 4), weights) == "merged levels"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (
            lambda value, value_spatial_shapes, sampling_locations, attention_weights: value.sum(),
            "on a random",
        ),
        (lambda value, points: value, "unknown signature: expected (value, "),
    ],
)
def test_functions_of_another_meaning_are_left_alone(library: ModuleType, function: Any, reason: str) -> None:
    library.ms_deform_attn_core_pytorch = function
    with Patch("stand-ins", library.__name__).patched() as report:
        assert library.ms_deform_attn_core_pytorch is function
    assert any(text.startswith(reason) for _, text in report.skipped)


@pytest.mark.parametrize("library", [detrex, mmcv, mmdet, rfdetr], ids=lambda x: x.__name__)
def test_a_library_that_is_not_there(library: Any) -> None:
    with pytest.raises(RuntimeError, match="has been imported: import it before"):
        library.patch()
    library.unpatch()


def test_code_without_a_package_of_its_own(library: ModuleType) -> None:
    with detr.patched():
        assert isinstance(library.MSDeformAttn(), attention_forms.OfficialAttention)
    assert not isinstance(library.MSDeformAttn(), attention_forms.Form)


@pytest.mark.parametrize("name", ["detrex._C", "groundingdino._C"])
def test_extensions_of_other_names(name: str) -> None:
    ms_deform_attn.install(name)
    assert importlib.import_module(name).ms_deform_attn_forward
    ms_deform_attn.uninstall(name)
    assert name not in sys.modules


@pytest.fixture
def mmcv_lite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path / "mmcv"
    mmcv.uninstall()
    sys.modules.pop("mmcv", None)


def test_the_extension_of_mmcv(mmcv_lite: Path) -> None:
    mmcv.install()
    extension = importlib.import_module("mmcv._ext")
    inputs = [torch.randn(2, 16, 3, 8), torch.rand(2, 5, 3, 2, 4, 2), torch.rand(2, 5, 3, 2, 4)]
    value, locations, weights = (x.requires_grad_() for x in inputs)
    shapes, starts, grad = torch.tensor([[3, 4], [2, 2]]), torch.tensor([0, 12]), torch.randn(2, 5, 24)
    expected = standins.sampled(value, shapes, locations, weights)
    given = (value, shapes, starts, locations, weights)
    torch.testing.assert_close(extension.ms_deform_attn_forward(*given, im2col_step=64), expected)
    gradients = [torch.full_like(x, torch.nan) for x in inputs]
    assert extension.ms_deform_attn_backward(*given, grad, *gradients, im2col_step=64) is None
    wanted = torch.autograd.grad(expected, inputs, grad)
    torch.testing.assert_close(gradients, list(wanted), rtol=1e-4, atol=1e-4)
    with pytest.raises(NotImplementedError, match=r"mmcv\._ext\.nms: mmcv was installed without"):
        extension.nms()


def test_the_extension_that_mmcv_has_is_kept(mmcv_lite: Path) -> None:
    (mmcv_lite / "_ext.cpython.so").touch()
    with pytest.raises(RuntimeError, match="mmcv has its own extension"):
        mmcv.install()


class Instances(SimpleNamespace):
    """Of mmengine's `InstanceData`, what an assigner reads."""

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def __contains__(self, name: str) -> bool:
        return hasattr(self, name)


class AssignResult(SimpleNamespace):
    pass


class ClassificationCost:
    weight = 1.0

    def __call__(self, predicted: Instances, wanted: Instances, meta: Any) -> Tensor:
        return -predicted.scores.softmax(-1)[:, wanted.labels] * self.weight


class FocalLossCost:
    weight, alpha, gamma, eps, binary_input = 2.0, 0.25, 2, 1e-12, False

    def __call__(self, predicted: Instances, wanted: Instances, meta: Any) -> Tensor:
        p = predicted.scores.sigmoid()
        negative = -(1 - p + self.eps).log() * (1 - self.alpha) * p**self.gamma
        positive = -(p + self.eps).log() * self.alpha * (1 - p) ** self.gamma
        return (positive - negative)[:, wanted.labels] * self.weight


class BBoxL1Cost:
    weight, box_format = 5.0, "xywh"

    def __call__(self, predicted: Instances, wanted: Instances, meta: Any) -> Tensor:
        height, width = meta["img_shape"]
        scale = torch.tensor([width, height, width, height])
        boxes = [box_xyxy_to_cxcywh(x.bboxes) / scale for x in (predicted, wanted)]
        return torch.cdist(*boxes, p=1) * self.weight


class IoUCost:
    weight, iou_mode = 2.0, "giou"

    def __call__(self, predicted: Instances, wanted: Instances, meta: Any) -> Tensor:
        return -generalized_box_iou(predicted.bboxes, wanted.bboxes) * self.weight


class CrossEntropyLossCost:
    weight, use_sigmoid = 5.0, True

    def __call__(self, predicted: Instances, wanted: Instances, meta: Any) -> Tensor:
        masks, labels = predicted.masks.flatten(1)[:, None], wanted.masks.flatten(1).float()[None]
        masks, labels = torch.broadcast_tensors(masks, labels)
        loss = nn.functional.binary_cross_entropy_with_logits(masks, labels, reduction="none")
        return loss.mean(-1) * self.weight


class DiceCost:
    weight, pred_act, naive_dice, eps = 5.0, True, True, 1.0

    def __call__(self, predicted: Instances, wanted: Instances, meta: Any) -> Tensor:
        masks, labels = predicted.masks.flatten(1).sigmoid(), wanted.masks.flatten(1).float()
        both = masks.sum(-1)[:, None] + labels.sum(-1)
        return (1 - (2 * masks @ labels.T + self.eps) / (both + self.eps)) * self.weight


class HungarianAssigner:
    def __init__(self, *match_costs: Any) -> None:
        self.match_costs = match_costs

    def assign(self, pred_instances, gt_instances, img_meta=None, **kwargs):
        count, found = len(gt_instances), torch.zeros(len(pred_instances), dtype=torch.int64)
        labels = torch.full_like(found, -1)
        if count:
            cost = sum(part(pred_instances, gt_instances, img_meta) for part in self.match_costs)
            query, target = (torch.as_tensor(x) for x in linear_sum_assignment(cost))
            found[query], labels[query] = target + 1, gt_instances.labels[target]
        return AssignResult(num_gts=count, gt_inds=found, max_overlaps=None, labels=labels)


COSTS = {
    "DETR": (ClassificationCost, BBoxL1Cost, IoUCost),
    "DINO": (FocalLossCost, BBoxL1Cost, IoUCost),
    "Mask2Former": (ClassificationCost, CrossEntropyLossCost, DiceCost),
}


@pytest.mark.parametrize("targets", [0, 1, 9, 40])
@pytest.mark.parametrize("name", COSTS)
def test_assigners_of_mmdetection(name: str, targets: int) -> None:
    def instances(count: int) -> dict[str, Tensor]:
        corner = torch.rand(count, 2) * torch.tensor([60.0, 40.0])
        boxes = torch.cat([corner, corner + 5 + 40 * torch.rand(count, 2)], 1)
        return {"bboxes": boxes} if name != "Mask2Former" else {}

    predicted = Instances(scores=torch.randn(30, 12) * 2, **instances(30))
    wanted = Instances(labels=torch.randint(0, 11, (targets,)), **instances(targets))
    if name == "Mask2Former":
        predicted.masks, wanted.masks = torch.randn(30, 50) * 3, (torch.rand(targets, 50) < 0.5).float()
    head = nn.Module()
    head.assigner = HungarianAssigner(*(kind() for kind in COSTS[name]))
    meta = {"img_shape": (80, 110)}
    expected = head.assigner.assign(predicted, wanted, meta)
    assert detr_fast.accelerate(head).replaced == [("assigner", "match costs and assignment")]
    assert detr_fast.accelerate(head).skipped == [("assigner", "already accelerated")]
    got = head.assigner.assign(predicted, wanted, meta)
    assert type(got) is AssignResult
    assert got.num_gts == targets
    assert torch.equal(got.gt_inds, expected.gt_inds)
    assert torch.equal(got.labels, expected.labels)
    detr_fast.restore(head)
    assert type(head.assigner) is HungarianAssigner


@pytest.mark.parametrize(
    ("cost", "name", "value"),
    [
        (BBoxL1Cost, "box_format", "xyxy"),
        (IoUCost, "iou_mode", "iou"),
        (DiceCost, "eps", 1e-3),
        (DiceCost, "naive_dice", False),
        (CrossEntropyLossCost, "use_sigmoid", False),
    ],
)
def test_match_costs_with_other_options_are_left_alone(cost: Any, name: str, value: Any) -> None:
    part = cost()
    setattr(part, name, value)
    reason = f"its match cost {cost.__name__} is not one of ours with these options"
    assert assigner.choose(HungarianAssigner(part)) == reason
