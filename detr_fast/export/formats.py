"""The formats that detectors leave in, by name, and how each is told from the name of a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TypeAlias

from detr_fast.engine import Detector
from detr_fast.export.transformers_folder import write_folder
from detr_fast.export.writers import Options, write_aoti, write_onnx, write_openvino, write_torch

Write: TypeAlias = Callable[[Detector, Path, Options], None]


@dataclass(frozen=True)
class Format:
    """One way out.

    name: on the command line.
    suffix: of its files; "" of a folder.
    write: the file or folder, which is compared with the detector afterwards.
    """

    name: str
    suffix: str
    write: Write


# the first of a suffix is what the suffix alone means
FORMATS = {
    known.name: known
    for known in (
        Format("onnx", ".onnx", write_onnx),
        Format("openvino", ".xml", write_openvino),
        Format("torch", ".pt2", write_torch),
        Format("aoti", ".pt2", write_aoti),
        Format("tensorrt", ".onnx", write_onnx),
        Format("transformers", "", write_folder),
    )
}


def format_of(path: Path | None, name: str | None) -> Format:
    """The format called `name`, or by default that of `path`'s suffix; a path that is given must fit it.

    Raises:
        ValueError: there is none of that name, with near names, or the path is none of that format.
    """
    if name is None:
        path = path or Path()
        found = next((known for known in FORMATS.values() if known.suffix == path.suffix), None)
        if found is None or not path.suffix:
            suffixes = dict.fromkeys(known.suffix for known in FORMATS.values() if known.suffix)
            raise ValueError(
                f"path: expected a name that ends in {', '.join(suffixes)}, or a format; got {path.name!r}"
            )
        return found
    if name not in FORMATS:
        near = get_close_matches(name.lower(), FORMATS, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}; got {name!r}{hint}")
    chosen = FORMATS[name]
    if path is not None:
        others = {known.suffix for known in FORMATS.values()} - {chosen.suffix}
        if path.suffix in others or (chosen.suffix and path.suffix != chosen.suffix):
            kind = f"a name that ends in {chosen.suffix}" if chosen.suffix else "a folder's name"
            raise ValueError(f"path: expected {kind} for {name}; got {path.name!r}")
    return chosen
