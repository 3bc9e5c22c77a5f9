"""Talking to a model: at a terminal, over a file of prompts, and behind an OpenAI-compatible server."""
