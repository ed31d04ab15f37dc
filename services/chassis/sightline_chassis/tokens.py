"""Bearer tokens: made here, shown once, kept as hashes only.

A token has 256 random bits, so a plain SHA-256 is as good as a slow hash: it cannot be guessed.
"""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "sightline_"
"""Prefix of every token made here, so that scanners for leaked secrets can recognise it."""

HASH_PATTERN = r"^sha256:[0-9a-f]{64}$"


def make_token() -> str:
    """A new token."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """A token's entry in a tokens file: "sha256:" and 64 hex digits."""
    return "sha256:" + hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
