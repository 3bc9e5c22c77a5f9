"""Replies collected, compared by people and judges, and made into comparisons for the next reward model."""
