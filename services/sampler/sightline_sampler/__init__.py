"""The sampler service: K on-policy candidates; policies swap while it serves. Its clients are in `sightline`."""
