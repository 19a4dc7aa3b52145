"""Modules of Deformable-DETR's and facebookresearch/detr's kin, as stand-ins written from their interface."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

import detr_fast
from detr_fast.boxes import box_cxcywh_to_xyxy, generalized_box_iou
from detr_fast.integrations import ms_deform_attn as extension


class MSDeformAttn(nn.Module):
    """Attention over N levels from queries, with the sampling left to the CUDA extension."""

    def __init__(self, d_model: int = 32, n_levels: int = 3, n_heads: int = 4, n_points: int = 2) -> None:
        super().__init__()
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.im2col_step = 64
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)

    def forward(
        self,
        query,
        reference_points,
        input_flatten,
        input_spatial_shapes,
        input_level_start_index,
        input_padding_mask=None,
    ):
        import MultiScaleDeformableAttention as MSDA

        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        form = (self.n_heads, self.n_levels, self.n_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*form, 2))
        weights = (
            self.attention_weights(query)
            .unflatten(-1, (self.n_heads, -1))
            .softmax(-1)
            .unflatten(-1, form[1:])
        )
        reference = reference_points[:, :, None, :, None]
        if reference.shape[-1] == 2:
            locations = reference + offsets / input_spatial_shapes.flip(1)[:, None]
        else:
            locations = reference[..., :2] + offsets / self.n_points * reference[..., 2:] * 0.5
        output = MSDA.ms_deform_attn_forward(
            value.unflatten(-1, (self.n_heads, -1)),
            input_spatial_shapes,
            input_level_start_index,
            locations,
            weights,
            self.im2col_step,
        )
        return self.output_proj(output)


class HungarianMatcher(nn.Module):
    """The softmax costs of facebookresearch/detr or the focal ones of Deformable-DETR and DINO."""

    def __init__(self, focal_alpha: float | None = None) -> None:
        super().__init__()
        self.cost_class, self.cost_bbox, self.cost_giou = 2.0, 5.0, 2.0
        if focal_alpha is not None:
            self.focal_alpha = focal_alpha

    @torch.no_grad()
    def forward(self, outputs, targets):
        indices = []
        for logits, boxes, target in zip(outputs["pred_logits"], outputs["pred_boxes"], targets, strict=True):
            if hasattr(self, "focal_alpha"):
                p, a = logits.sigmoid(), self.focal_alpha
                classes = a * (1 - p) ** 2 * -(p + 1e-8).log() - (1 - a) * p**2 * -(1 - p + 1e-8).log()
            else:
                classes = -logits.softmax(-1)
            giou = generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(target["boxes"]))
            cost = self.cost_bbox * torch.cdist(boxes, target["boxes"], p=1) - self.cost_giou * giou
            pair = linear_sum_assignment(cost + self.cost_class * classes[:, target["labels"]])
            indices.append(tuple(torch.as_tensor(x, dtype=torch.int64) for x in pair))
        return indices


@pytest.fixture
def installed() -> Iterator[None]:
    extension.install()
    yield
    extension.uninstall()


@pytest.mark.parametrize("coordinates", [2, 4])
def test_attention_modules(installed: None, coordinates: int) -> None:
    module = MSDeformAttn()
    shapes = torch.tensor([[3, 4], [2, 2], [1, 1]])
    given = (torch.randn(2, 5, 32), torch.rand(2, 5, 3, coordinates), torch.randn(2, 17, 32), shapes)
    given += (torch.tensor([0, 12, 16]), torch.rand(2, 17) < 0.3)
    expected = module(*given)
    assert [path for path, _ in detr_fast.accelerate(nn.Sequential(module)).replaced] == ["0"]
    torch.testing.assert_close(module(*given), expected, rtol=1e-5, atol=1e-6)
    detr_fast.restore(module)
    assert type(module) is MSDeformAttn


def test_attention_that_cannot_be_tried_is_left_alone() -> None:
    report = detr_fast.accelerate(MSDeformAttn())
    assert "it could not be tried" in report.skipped[0][1]


@pytest.mark.parametrize("alpha", [None, 0.25, 0.6])
def test_matchers(alpha: float | None) -> None:
    criterion = nn.Module()
    criterion.matcher = matcher = HungarianMatcher(alpha)
    outputs: dict[str, Any] = {
        "pred_logits": torch.randn(2, 40, 12) * 2,
        "pred_boxes": torch.rand(2, 40, 4) * 0.4 + 0.1,
    }
    targets = [{"labels": torch.randint(0, 11, (n,)), "boxes": torch.rand(n, 4) * 0.4 + 0.1} for n in (7, 0)]
    expected = matcher(outputs, targets)
    assert detr_fast.accelerate(criterion).replaced == [("matcher", "matching in one call")]
    for ours, theirs in zip(matcher(outputs, targets), expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    detr_fast.restore(criterion)
    assert type(matcher) is HungarianMatcher


def test_a_matcher_with_other_costs_is_left_alone() -> None:
    class Other(HungarianMatcher):
        def forward(self, outputs, targets):
            return super().forward(outputs | {"pred_logits": -outputs["pred_logits"]}, targets)

    Other.__name__ = "HungarianMatcher"
    report = detr_fast.accelerate(Other())
    assert report.skipped == [("", "its costs are neither DETR's nor Deformable DETR's")]
