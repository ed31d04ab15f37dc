"""Engines turn an image and a prompt into candidates: one small interface (`base`), several implementations."""
