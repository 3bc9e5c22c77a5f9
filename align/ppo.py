"""PPO, from the sft policy and the reward model, the recipe's `ppo` stage.

accelerate launch align/ppo.py RECIPE [key=value …] [--fresh]
accelerate launch -m align.ppo RECIPE [key=value …] [--fresh]
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

    return run_entry("ppo", argv)


if __name__ == "__main__":
    sys.exit(main())
