"""The model's processor for a run, with the recipe's chat template and pixel bounds.

All code in the trainer that renders a prompt, counts tokens or makes rows gets its processor here. The sampler has the
same template and bounds by its own settings, and the two must not differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sightline.errors import PreconditionFailed


@dataclass(frozen=True)
class ModelProcessor:
    """How to make a processor.

    Attributes:
        model: the base LVLM, a Hugging Face folder or name.
        chat_template: Jinja text instead of the model's own.
        min_pixels, max_pixels: bounds of an image as shown to the model; None is the model's own.
    """

    model: str
    chat_template: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    @property
    def own(self) -> bool:
        """Whether it is the model's own, unchanged."""
        return self.chat_template is None and self.min_pixels is None and self.max_pixels is None

    def load(self) -> Any:
        """The processor; code in a checkpoint is never run.

        Raises:
            PreconditionFailed: PROCESSOR_UNUSABLE: it has no pixel bounds, or the minimum is above the maximum.
            Exception: any error of transformers on files that it can't use.
        """
        from sightline_chassis.families.auto import AutoProcessor
        from sightline_chassis.families.pixels import bound_pixels
        from sightline_chassis.families.processing import ProcessorUnusable

        processor = AutoProcessor.from_pretrained(self.model, trust_remote_code=False)
        if self.chat_template is not None:
            processor.chat_template = self.chat_template
        try:
            bound_pixels(processor, self.min_pixels, self.max_pixels)
        except ProcessorUnusable as error:
            raise PreconditionFailed(f"{self.model}: {error}", reason="PROCESSOR_UNUSABLE") from error
        return processor
