"""Names the symptoms of a ppo stage from the figures it logged, with evidence, likely causes and what to change.

`read_history` reads what a stage left (`history_of` takes what is read), `examine` asks every rule. A rule is a pure
function of a `History`.
"""

from __future__ import annotations

from align.doctor.examine import Diagnosis, examine
from align.doctor.history import History
from align.doctor.reading import history_of, read_history

__all__ = ["Diagnosis", "History", "examine", "history_of", "read_history"]
