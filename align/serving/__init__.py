"""Rewards for others: which one somebody names, and one behind an HTTP address."""
