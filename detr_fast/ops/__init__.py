"""The operators: multi-scale deformable attention, matching costs, assignment.

`OPERATORS` lists their backend tables.
"""

from detr_fast.ops import box_match_cost as _box_match_cost
from detr_fast.ops import linear_assignment as _linear_assignment
from detr_fast.ops import ms_deform_attn as _ms_deform_attn
from detr_fast.ops.backend import BackendUnavailable, Operator, use_backend
from detr_fast.ops.box_match_cost import box_match_cost
from detr_fast.ops.linear_assignment import linear_assignment
from detr_fast.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_classic, ms_deform_attn_fused

__all__ = [
    "OPERATORS",
    "BackendUnavailable",
    "box_match_cost",
    "linear_assignment",
    "ms_deform_attn",
    "ms_deform_attn_classic",
    "ms_deform_attn_fused",
    "use_backend",
]

OPERATORS: tuple[Operator, ...] = (
    _ms_deform_attn.OPERATOR,
    _box_match_cost.OPERATOR,
    _linear_assignment.OPERATOR,
)
