"""Generating replies, judging them, and comparing policies."""
