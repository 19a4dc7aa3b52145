"""From predictions to what a person asked for."""

from detr_fast.postprocess.detection import postprocess_detection, postprocess_focal

__all__ = ["postprocess_detection", "postprocess_focal"]
