"""Engines: what turns an image and a prompt into candidates. One small interface (`base`), several ways behind it."""
