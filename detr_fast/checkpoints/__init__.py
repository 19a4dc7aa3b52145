"""Reading checkpoints safely and loading them into models, official ones included."""

from detr_fast.checkpoints.files import read_checkpoint, read_file, write_checkpoint
from detr_fast.checkpoints.state_dicts import LoadReport, describe, load_state_dict, official_names

__all__ = [
    "LoadReport",
    "describe",
    "load_state_dict",
    "official_names",
    "read_checkpoint",
    "read_file",
    "write_checkpoint",
]
