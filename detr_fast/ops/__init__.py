"""The operators: multi-scale deformable attention, point sampling, matching costs, assignment."""

from detr_fast.ops.box_loss import OPERATOR as _BOX_LOSS
from detr_fast.ops.box_loss import box_loss
from detr_fast.ops.box_match_cost import OPERATOR as _BOX_MATCH_COST
from detr_fast.ops.box_match_cost import box_match_cost
from detr_fast.ops.class_loss import OPERATOR as _CLASS_LOSS
from detr_fast.ops.class_loss import class_loss
from detr_fast.ops.linear_assignment import OPERATOR as _LINEAR_ASSIGNMENT
from detr_fast.ops.linear_assignment import linear_assignment
from detr_fast.ops.mask_match_cost import OPERATOR as _MASK_MATCH_COST
from detr_fast.ops.mask_match_cost import mask_match_cost
from detr_fast.ops.ms_deform_attn import OPERATOR as _MS_DEFORM_ATTN
from detr_fast.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_classic, ms_deform_attn_fused
from detr_fast.ops.operator import BackendUnavailable, Operator, check_environment, use_backend
from detr_fast.ops.point_sample import OPERATOR as _POINT_SAMPLE
from detr_fast.ops.point_sample import point_sample
from detr_fast.ops.warm_up import warm_up

__all__ = [
    "OPERATORS",
    "BackendUnavailable",
    "box_loss",
    "box_match_cost",
    "class_loss",
    "linear_assignment",
    "mask_match_cost",
    "ms_deform_attn",
    "ms_deform_attn_classic",
    "ms_deform_attn_fused",
    "point_sample",
    "use_backend",
    "warm_up",
]

OPERATORS: tuple[Operator, ...] = (
    _MS_DEFORM_ATTN,
    _POINT_SAMPLE,
    _BOX_MATCH_COST,
    _MASK_MATCH_COST,
    _LINEAR_ASSIGNMENT,
    _CLASS_LOSS,
    _BOX_LOSS,
)
"""The backend tables of all operators."""

check_environment()
