"""The matchers of other code bases, one name for each, with its own options and defaults.

They look alike and differ in what they minimise: a matcher of facebookresearch/detr in the place of
Deformable DETR's silently gives most targets another query. An option of another code base's raises, and
says which matcher takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from detr_fast.matcher import HungarianMatcher, MaskMatcher

__all__ = [
    "DETRMatcher",
    "DINOMatcher",
    "DeformableDETRMatcher",
    "DetrexMatcher",
    "Mask2FormerMatcher",
    "MaskFormerMatcher",
    "RTDETRMatcher",
]

_TAKEN_BY = {
    "focal_alpha": "DINOMatcher",
    "cost_class_type": "DetrexMatcher",
    "weight_dict": "RTDETRMatcher",
    "use_focal_loss": "RTDETRMatcher",
    "num_points": "Mask2FormerMatcher",
    "cost_mask": "Mask2FormerMatcher or MaskFormerMatcher",
    "cost_dice": "Mask2FormerMatcher or MaskFormerMatcher",
    "cost_bbox": "DETRMatcher, DeformableDETRMatcher, DINOMatcher or DetrexMatcher",
    "cost_giou": "DETRMatcher, DeformableDETRMatcher, DINOMatcher or DetrexMatcher",
}


class _Official(HungarianMatcher):
    """Takes three costs."""

    kind: Literal["softmax", "focal"]

    def __init__(
        self, cost_class: float = 1, cost_bbox: float = 1, cost_giou: float = 1, **foreign: Any
    ) -> None:
        _refuse(self, foreign)
        super().__init__(cost_class, cost_bbox, cost_giou, self.kind)


class DETRMatcher(_Official):
    """`models.matcher.HungarianMatcher` of facebookresearch/detr: softmax costs."""

    kind = "softmax"


class DeformableDETRMatcher(_Official):
    """`models.matcher.HungarianMatcher` of fundamentalvision/Deformable-DETR: focal costs."""

    kind = "focal"


class DINOMatcher(HungarianMatcher):
    """`HungarianMatcher` of IDEA-Research/DINO, and of DAB-DETR and DN-DETR: focal costs."""

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        focal_alpha: float = 0.25,
        **foreign: Any,
    ) -> None:
        _refuse(self, foreign)
        super().__init__(cost_class, cost_bbox, cost_giou, "focal", focal_alpha)


class DetrexMatcher(HungarianMatcher):
    """`detrex.modeling.matcher.HungarianMatcher`: focal costs unless `cost_class_type` is "ce_cost"."""

    def __init__(
        self,
        cost_class: float = 1,
        cost_bbox: float = 1,
        cost_giou: float = 1,
        cost_class_type: Literal["focal_loss_cost", "ce_cost"] = "focal_loss_cost",
        alpha: float = 0.25,
        gamma: float = 2.0,
        **foreign: Any,
    ) -> None:
        _refuse(self, foreign)
        if cost_class_type not in ("focal_loss_cost", "ce_cost"):
            raise ValueError(
                f"cost_class_type: expected 'focal_loss_cost' or 'ce_cost'; got {cost_class_type!r}"
            )
        kind: Literal["softmax", "focal"] = "softmax" if cost_class_type == "ce_cost" else "focal"
        super().__init__(cost_class, cost_bbox, cost_giou, kind, alpha, gamma)


class RTDETRMatcher(HungarianMatcher):
    """`HungarianMatcher` of RT-DETRv2 and D-FINE: weights come as a dict, indices return in one."""

    def __init__(
        self,
        weight_dict: Mapping[str, float],
        use_focal_loss: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        **foreign: Any,
    ) -> None:
        _refuse(self, foreign)
        names = ("cost_class", "cost_bbox", "cost_giou")
        if set(weight_dict) != set(names):
            raise ValueError(f"weight_dict: expected the keys {', '.join(names)}; got {sorted(weight_dict)}")
        kind: Literal["softmax", "focal"] = "focal" if use_focal_loss else "softmax"
        cost_class, cost_bbox, cost_giou = (weight_dict[name] for name in names)
        super().__init__(cost_class, cost_bbox, cost_giou, kind, alpha, gamma)

    def forward(  # type: ignore[override]
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """As `HungarianMatcher.forward`, its result under the key "indices"."""
        return {"indices": super().forward(outputs, targets)}


class Mask2FormerMatcher(MaskMatcher):
    """`mask2former.modeling.matcher.HungarianMatcher` of facebookresearch/Mask2Former."""

    def __init__(
        self,
        cost_class: float = 1,
        cost_mask: float = 1,
        cost_dice: float = 1,
        num_points: int = 12544,
        **foreign: Any,
    ) -> None:
        _refuse(self, foreign)
        if num_points < 1:
            raise ValueError(f"num_points: expected at least 1; got {num_points}")
        super().__init__(cost_class, cost_mask, cost_dice, num_points)


class MaskFormerMatcher(MaskMatcher):
    """`HungarianMatcher` of facebookresearch/MaskFormer: focal costs of whole masks."""

    def __init__(
        self, cost_class: float = 1, cost_mask: float = 1, cost_dice: float = 1, **foreign: Any
    ) -> None:
        _refuse(self, foreign)
        super().__init__(cost_class, cost_mask, cost_dice, 0, "focal")


def _refuse(matcher: object, foreign: Mapping[str, Any]) -> None:
    for name in foreign:
        meant = f"; it is one of {_TAKEN_BY[name]}" if name in _TAKEN_BY else ""
        raise TypeError(f"{type(matcher).__name__} has no option {name}{meant}")
