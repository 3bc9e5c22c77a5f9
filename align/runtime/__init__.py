"""The ground floor, which imports nothing of ours: the root of all errors, paths people type, text for a terminal."""
