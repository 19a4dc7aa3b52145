"""From a trained detector to files that serve without this package.

The function is `detr_fast.export.export`: `detr_fast.export` is this module, so it cannot be called.
"""

from detr_fast.export.formats import FORMATS, format_of
from detr_fast.export.tensorrt import trtexec_lines
from detr_fast.export.write import export

__all__ = ["FORMATS", "export", "format_of", "trtexec_lines"]
