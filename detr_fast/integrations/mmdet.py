"""mmdetection's `HungarianAssigner`, for the heads that a script builds; its attention is mmcv's.

>>> from detr_fast.integrations import mmcv, mmdet
>>> print(mmcv.patch(), mmdet.patch())  # after `import mmdet.models`
"""

from __future__ import annotations

from detr_fast.integrations.patching import Patch

__all__ = ["patch", "patched", "unpatch"]

_PATCH = Patch("mmdetection", "mmdet")
patch, unpatch, patched = _PATCH.patch, _PATCH.unpatch, _PATCH.patched
