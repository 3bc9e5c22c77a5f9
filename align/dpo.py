"""Direct preference optimization on comparisons, the recipe's `dpo` stage.

accelerate launch align/dpo.py RECIPE [key=value …] [--fresh]
accelerate launch -m align.dpo RECIPE [key=value …] [--fresh]
"""

from __future__ import annotations

import sys
from pathlib import Path

# Launched as a file, Python puts align/ first on sys.path, where our modules would shadow others: put the root there.
_HERE = Path(__file__).resolve().parent
if sys.path and Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)


def main(argv: list[str] | None = None) -> int:
    """Run the stage and return the exit code."""
    from align.cli import run_entry

    return run_entry("dpo", argv)


if __name__ == "__main__":
    sys.exit(main())
