"""Policies: which are loaded, how they arrive, and the proof that their weights arrived."""
