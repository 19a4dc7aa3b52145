"""detrex's attention and matchers, and GroundingDINO's attention.

Both import an extension `_C`, which need not be built:

>>> from detr_fast.integrations import detrex, ms_deform_attn
>>> ms_deform_attn.install("detrex._C")  # or "groundingdino._C"; before either is imported
>>> print(detrex.patch())  # afterwards
"""

from __future__ import annotations

from detr_fast.integrations.patching import Patch

__all__ = ["patch", "patched", "unpatch"]

_PATCH = Patch("detrex", "detrex", "groundingdino")
patch, unpatch, patched = _PATCH.patch, _PATCH.unpatch, _PATCH.patched
