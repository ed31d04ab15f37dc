"""ModelProcessor: the model's processor of a run, with the recipe's chat template and bounds of pixels.

Whatever in the trainer renders a prompt, counts tokens or makes rows gets its processor here: the sampler has the same
template and bounds by its own settings, and the two may not differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sightline.errors import PreconditionFailed


@dataclass(frozen=True)
class ModelProcessor:
    """What a processor is made of.

    Attributes:
        model: the base LVLM, a Hugging Face folder or name.
        chat_template: Jinja text in place of the model's own.
        min_pixels, max_pixels: of an image as it is shown; None is the model's own.
    """

    model: str
    chat_template: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    @property
    def own(self) -> bool:
        """Whether it is as the model brings it."""
        return self.chat_template is None and self.min_pixels is None and self.max_pixels is None

    def load(self) -> Any:
        """The processor; no code that a checkpoint brings is run.

        Raises:
            PreconditionFailed: PROCESSOR_UNUSABLE, it takes no bounds of pixels, or they exclude each other.
            Exception: whatever transformers raises on files that it can't use.
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
