"""Choosing what to learn from: scores of rows, clusters, selection and tags."""
