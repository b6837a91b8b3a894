"""Preference alignment for generative models of any modality."""

__version__ = "0.1.0"
