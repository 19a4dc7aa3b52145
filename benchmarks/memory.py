"""Peak memory of the mask criterion beside Mask2Former's own.

    python -m benchmarks.memory [--json FILE]

prints a line a pass and writes the rows with the machine (default: benchmarks/results/memory.json).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from detr_fast.benchmarking import memory
from detr_fast.benchmarking.machine import describe_machine

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "memory.json")
    path = parser.parse_args().json
    rows = memory.run()
    for row in rows:
        print(
            f"{row['operator']} {row['case']}, {row['pass']}: ours {row['ours_mib']:.0f} MiB, "
            f"{row['peer']} {row['peer_mib']:.0f} MiB ({row['ratio']:.1f}x); "
            f"{row['ours_s']:.1f} s, {row['peer_s']:.1f} s on {row['threads']} thread"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": rows, "machine": describe_machine()}, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
