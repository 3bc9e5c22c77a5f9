"""How much memory a recipe needs, worked out from its numbers alone: no torch, no model, no hub."""

from __future__ import annotations

from align.plan.parts import MemoryPart, Moment, StagePlan
from align.plan.predict import plan_stages
from align.plan.propose import Proposal, propose
from align.plan.shapes import PlanError, Shape

__all__ = ["MemoryPart", "Moment", "PlanError", "Proposal", "Shape", "StagePlan", "plan_stages", "propose"]
