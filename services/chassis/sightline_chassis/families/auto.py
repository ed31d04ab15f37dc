"""Auto: transformers' Auto classes, extended by families that transformers lacks. Import them from here only."""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from sightline_chassis.families.mobilevlm import register

__all__ = ["AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"]

register()
