"""The trainer: the loop, and the service that runs it. Its client is in `sightline`."""
