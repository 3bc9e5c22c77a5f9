"""The HTML report of a run, made from the files its stages left behind and from nothing else.

`build_report(output_dir)` is all there is to call. Figures and page are separate: `figures` names what is drawn, `svg`
makes parts of a page of it, `page` writes HTML.
"""

from __future__ import annotations

from align.report.build import build_report

__all__ = ["build_report"]
