"""The trainer's client: start, watch and stop runs. Light: gRPC and protobuf."""

from sightline.runs.client import RunClient

__all__ = ["RunClient"]
