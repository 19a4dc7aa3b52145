"""From a trained detector to files that serve without this package.

The function is `detr_fast.export.export`: `detr_fast.export` is this module, so it cannot be called.
"""

from detr_fast.export.formats import FORMATS, format_of
from detr_fast.export.quantize import Quantized, export_int8
from detr_fast.export.tensorrt import trtexec_lines
from detr_fast.export.write import export

__all__ = ["FORMATS", "Quantized", "export", "export_int8", "format_of", "trtexec_lines"]
