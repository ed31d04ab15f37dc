"""The console: `sightline ui`, all runs of a directory or of a trainer service in the browser."""
