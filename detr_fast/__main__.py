"""The `detr-fast` command, also as `python -m detr_fast`."""

from __future__ import annotations

import sys

from detr_fast.extras import explain_missing, extra_of


def main() -> None:
    """Runs the command line; where a package of an extra is missing, one line says so."""
    try:
        from detr_fast import cli
    except ModuleNotFoundError as error:
        if extra_of(error) is None:
            raise
        print(f"error: {explain_missing(error)}", file=sys.stderr)
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
