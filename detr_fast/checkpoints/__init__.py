"""Reading checkpoints safely and loading them into models, official ones included."""

from detr_fast.checkpoints.atomic import atomic_write, remove_leftovers
from detr_fast.checkpoints.contents import options_in
from detr_fast.checkpoints.detrex import is_detrex
from detr_fast.checkpoints.files import (
    Checkpoint,
    open_checkpoint,
    read_checkpoint,
    read_file,
    write_checkpoint,
)
from detr_fast.checkpoints.kinds import describe
from detr_fast.checkpoints.state_dicts import LoadReport, load_state_dict, official_names
from detr_fast.checkpoints.transformers_files import Folder

__all__ = [
    "Checkpoint",
    "Folder",
    "LoadReport",
    "atomic_write",
    "describe",
    "is_detrex",
    "load_state_dict",
    "official_names",
    "open_checkpoint",
    "options_in",
    "read_checkpoint",
    "read_file",
    "remove_leftovers",
    "write_checkpoint",
]
