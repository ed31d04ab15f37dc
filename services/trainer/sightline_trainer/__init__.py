"""The trainer of Sightline. This module is its light client; the service stands in ``server``."""

from sightline_trainer.client import RunClient

__all__ = ["RunClient"]
