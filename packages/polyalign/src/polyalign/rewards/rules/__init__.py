"""Verifiers: checks of a response by rule, on [0, 1], with no weights behind them.

By what they look at (ACT, Aligning to Constraints): the response alone (`text`, `media`), prompt or reference and response
(`answers`, `extractive` in `text`), or several related items at once (`relations`). `constraints` is the share that a
record's list of them is kept.
"""
