"""Auto: transformers' Auto classes, which know here the families that transformers lacks. Take them from here only."""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from sightline_chassis.families.mobilevlm import register

__all__ = ["AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"]

register()
