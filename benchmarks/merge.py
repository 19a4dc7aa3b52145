"""Joins results that `detr-fast bench --json` measured in pieces on one machine.

    python benchmarks/merge.py PIECE.json... --out benchmarks/results/NAME.json

A later piece's row replaces an earlier one's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.suite import median_rows

KEY = ("operator", "case", "pass", "threads", "peer")


def merge(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """One report; its machine is the last piece's, with the commits of all."""
    if len({report["machine"]["cpu"] for report in reports}) != 1:
        raise SystemExit("the pieces come from different machines")
    rows = {tuple(row[key] for key in KEY): row for report in reports for row in report["rows"]}
    for row in median_rows([row for row in rows.values() if not row["case"].startswith("median")]):
        rows[tuple(row[key] for key in KEY)] = row
    missing = {name: why for report in reports for name, why in report["missing_peers"].items()}
    commits = sorted({str(report["machine"]["commit"]) for report in reports})
    return {
        "rows": list(rows.values()),
        "missing_peers": missing,
        "machine": {**reports[-1]["machine"], "commit": ", ".join(commits)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pieces", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    merged = merge([json.loads(piece.read_text()) for piece in arguments.pieces])
    arguments.out.write_text(json.dumps(merged, indent=1) + "\n")


if __name__ == "__main__":
    main()
