"""The operators: multi-scale deformable attention, matching costs, assignment."""

from detr_fast.ops.backend import BackendUnavailable, use_backend

__all__ = ["BackendUnavailable", "use_backend"]
