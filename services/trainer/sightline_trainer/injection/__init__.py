"""Injection: plausible errors in good answers."""
