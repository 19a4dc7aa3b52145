"""Where golden cases beside those of the repository and the COCO sample lie, if they do."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _directory(variable: str, default: Path) -> Path | None:
    path = Path(os.environ.get(variable, default))
    return path.resolve() if path.is_dir() else None


MORE_GOLDEN = _directory("DETR_FAST_GOLDEN", ROOT.parent / "shared" / "golden")
COCO_SAMPLE = _directory("DETR_FAST_COCO_SAMPLE", ROOT.parent / "shared" / "coco_sample")

COCO_SAMPLE_REASON = "COCO sample not found: set DETR_FAST_COCO_SAMPLE to its directory"
