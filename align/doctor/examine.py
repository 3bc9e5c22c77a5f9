"""Every rule over one history."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from align.doctor import rules  # noqa: F401 (importing it registers the rules)
from align.doctor.history import History
from align.doctor.rule import RULES, DiagnosticRule, Evidence


@dataclass(frozen=True, slots=True)
class Symptom:
    """A rule that saw something."""

    rule: DiagnosticRule
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What all rules said: `findings` (problems first), `clear` (rules that saw nothing), `blind` (rule -> why)."""

    findings: tuple[Symptom, ...]
    clear: tuple[str, ...]
    blind: dict[str, str]

    @property
    def problems(self) -> tuple[Symptom, ...]:
        """The findings that put the run's result in doubt."""
        return tuple(finding for finding in self.findings if finding.rule.severity == "problem")

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        findings = [
            {
                "rule": finding.rule.name,
                "severity": finding.rule.severity,
                "title": finding.rule.title,
                **asdict(finding.evidence),
                "causes": finding.rule.causes,
                "changes": finding.rule.changes,
            }
            for finding in self.findings
        ]
        return {"findings": findings, "clear": self.clear, "could_not_look": self.blind}


def examine(history: History) -> Diagnosis:
    """Ask every rule that has what it needs."""
    trained = history.trained()
    findings, clear, blind = [], [], {}
    for name, rule in RULES.items():
        shown = trained if rule.trained else history
        if rule.trained and not trained.iterations:
            blind[name] = "no iteration that trained the policy"
        elif reason := rule.why_not(shown):
            blind[name] = reason
        elif (evidence := rule.examine(shown)) is None:
            clear.append(name)
        else:
            findings.append(Symptom(rule if history.has_critic else rule.without_critic(), evidence))
    findings.sort(key=lambda finding: finding.rule.severity != "problem")
    return Diagnosis(tuple(findings), tuple(clear), blind)
