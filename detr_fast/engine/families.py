"""The earlier place of `detr_fast.families`."""

from detr_fast.families import FAMILIES, MODELS, Family, check_task, family_of, model_config

__all__ = ["FAMILIES", "MODELS", "Family", "check_task", "family_of", "model_config"]
