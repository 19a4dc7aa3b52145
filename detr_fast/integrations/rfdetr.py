"""The package rfdetr: its attention, its function `ms_deform_attn_core_pytorch`, its matcher and criterion.

>>> from detr_fast.integrations import rfdetr
>>> print(rfdetr.patch())  # after `import rfdetr`
"""

from __future__ import annotations

from detr_fast.integrations.patching import Patch

__all__ = ["patch", "patched", "unpatch"]

_PATCH = Patch("rfdetr", "rfdetr")
patch, unpatch, patched = _PATCH.patch, _PATCH.unpatch, _PATCH.patched
