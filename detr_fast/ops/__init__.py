"""The operators: multi-scale deformable attention, point sampling, matching costs, assignment."""

from detr_fast.ops.backend import BackendUnavailable, Operator, use_backend
from detr_fast.ops.box_match_cost import OPERATOR as _BOX_MATCH_COST
from detr_fast.ops.box_match_cost import box_match_cost
from detr_fast.ops.linear_assignment import OPERATOR as _LINEAR_ASSIGNMENT
from detr_fast.ops.linear_assignment import linear_assignment
from detr_fast.ops.ms_deform_attn import OPERATOR as _MS_DEFORM_ATTN
from detr_fast.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_classic, ms_deform_attn_fused
from detr_fast.ops.point_sample import OPERATOR as _POINT_SAMPLE
from detr_fast.ops.point_sample import point_sample

__all__ = [
    "OPERATORS",
    "BackendUnavailable",
    "box_match_cost",
    "linear_assignment",
    "ms_deform_attn",
    "ms_deform_attn_classic",
    "ms_deform_attn_fused",
    "point_sample",
    "use_backend",
]

OPERATORS: tuple[Operator, ...] = (_MS_DEFORM_ATTN, _BOX_MATCH_COST, _LINEAR_ASSIGNMENT, _POINT_SAMPLE)
"""The backend tables of all operators."""
