"""Policies: those that are loaded, how they come, and the proof that their weights arrived."""
