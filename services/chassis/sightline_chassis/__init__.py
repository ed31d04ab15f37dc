"""What every Sightline service stands on: settings, server life, TLS, tokens, limits, health, metrics, images."""
