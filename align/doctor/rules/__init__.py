"""The rules, by what they look at. Importing this package registers them, in the order they are asked."""

from __future__ import annotations

from align.doctor.rules import critic, divergence, policy, record, replies, rewards, scores

__all__ = ["critic", "divergence", "policy", "record", "replies", "rewards", "scores"]
