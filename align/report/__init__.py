"""The HTML report of a run, made from the files its stages left behind and from nothing else.

`build_report(output_dir)` is all there is to call. Reading, figures and page are separate: `run` reads files without
trusting them, `curves`, `preference`, `ppo` and `wins` draw, `page` writes HTML.
"""

from __future__ import annotations

from align.report.build import build_report

__all__ = ["build_report"]
