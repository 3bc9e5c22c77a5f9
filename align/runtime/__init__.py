"""The ground floor, which imports nothing of ours.

The root of all errors, typed paths, text for a terminal, files that take their names whole, secrets kept out of texts.
"""
