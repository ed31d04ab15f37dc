"""A recipe's decoding as options of the sampler's calls, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sightline.sampler import Prompted

from sightline_trainer.decoding_settings import Decoding, Prompting
from sightline_trainer.detector import Detector
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.speaker.template import filled


class DecoderOptions:
    """Options by prompt.

    Args:
        seed: seed of noise and crops; the same picture has the same noise in every call.
        detector: finds the objects that prompted guidance names, among `objects`.
    """

    def __init__(
        self, settings: Decoding, seed: int, detector: Detector | None = None, objects: Sequence[str] = ()
    ) -> None:
        self.settings = settings
        self.seed = seed
        self.detector = detector
        self.objects = objects
        self._found: dict[str, list[str]] = {}

    async def __call__(self, prompt: Prompt, question: str) -> dict[str, Any]:
        """Options of a call that asks `question` about the prompt's picture.

        Raises:
            InvalidInput: the detector refuses the picture.
            SightlineError: it stays unavailable.
        """
        settings, seed = self.settings, prompt.seed(self.seed, -6)
        options: dict[str, Any] = {}
        for name in ("top_k", "min_p", "repetition_penalty"):
            if (value := getattr(settings, name)) != Decoding.model_fields[name].default:
                options[name] = value
        if settings.beams is not None:
            options["beams"] = settings.beams.of()
        if settings.distortion is not None:
            options["distortion"] = settings.distortion.of(seed)
        if settings.guidance is not None:
            other = settings.guidance.prompted
            fixed = settings.guidance.fixed(seed)
            options["guidance"] = fixed if other is None else await self._prompted(other, prompt, question)
        return options

    async def _prompted(self, settings: Prompting, prompt: Prompt, question: str) -> Prompted:
        if "{objects}" in settings.template and prompt.id not in self._found:
            assert self.detector is not None
            scores = await self.detector(prompt, self.objects)
            self._found[prompt.id] = [
                name for name in self.objects if scores.get(name, settings.there - 1) >= settings.there
            ]
        objects = ", ".join(self._found.get(prompt.id, ()))
        return Prompted(filled(settings.template, {"question": question, "objects": objects}), settings.gamma)
