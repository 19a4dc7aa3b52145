"""From a trained detector to files that serve without this package."""

from detr_fast.export.write import export

__all__ = ["export"]
