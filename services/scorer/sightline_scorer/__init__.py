"""The scorer service: how well does each text fit its image? Its clients are in `sightline`."""
