"""Judges: whatever says which of two replies to a prompt is the better one."""
