"""The command line `sightline`. It imports a service only when a command needs it."""
