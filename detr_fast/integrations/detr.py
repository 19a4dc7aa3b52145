"""Code bases that are run from their own checkout: facebookresearch/detr, Deformable-DETR and their kin.

DAB-DETR, DN-DETR, DINO, Mask2Former, MaskDINO, RT-DETR, D-FINE and DEIM are among them. Their modules have no
package name in common, so every module that has been imported is looked through for their classes.

>>> from detr_fast.integrations import detr
>>> print(detr.patch())  # after the imports, before models and criteria are built
"""

from __future__ import annotations

from detr_fast.integrations.patching import Patch

__all__ = ["patch", "patched", "unpatch"]

_PATCH = Patch("code like facebookresearch/detr's")
patch, unpatch, patched = _PATCH.patch, _PATCH.unpatch, _PATCH.patched
