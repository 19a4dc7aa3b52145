"""Fast operators for DETR-family models, and readable models around them."""

__version__ = "0.1.0"
