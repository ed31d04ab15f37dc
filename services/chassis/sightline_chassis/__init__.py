"""The common base of all Sightline services: settings, server life, TLS, tokens, limits, health, metrics, images."""
