"""Judges behind an OpenAI-compatible chat endpoint: a score per response, or a ranking of responses to one prompt."""
