"""The operators: multi-scale deformable attention, matching costs, assignment."""

from detr_fast.ops.backend import BackendUnavailable, use_backend
from detr_fast.ops.box_match_cost import box_match_cost
from detr_fast.ops.linear_assignment import linear_assignment

__all__ = ["BackendUnavailable", "box_match_cost", "linear_assignment", "use_backend"]
