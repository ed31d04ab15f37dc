"""The sampler service: K on-policy candidates, and policies swapped while serving. Its clients are in `sightline`."""
