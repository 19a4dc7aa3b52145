"""The families, at their earlier place."""

from detr_fast.families import FAMILIES, MODELS, Family, model_config  # noqa: F401
