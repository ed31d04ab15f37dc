"""The model card: every fact that a score depends on, made once from the real model and stored in Triton's config.

The repository builder writes it as the parameter `sightline` of each config.pbtxt; the service reads it back from the
running Triton, embedded or remote. So `ListModels` reports what Triton really serves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from sightline.picture_rule import PICTURE_RULE

PARAMETER = "sightline"
TOWERS = ("image", "text")
"""Towers of a CLIP-type model."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; read once while the file is unchanged."""
    facts = path.stat()
    return _sha256(str(path.resolve()), facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


@cache
def _sha256(path: str, *_facts: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclasses.dataclass(frozen=True, slots=True)
class ModelCard:
    """Facts of one model."""

    name: str
    """The name that requests use."""
    kind: str
    """The kind of model, as in `models.NAME.kind`."""
    architecture: str
    """An open_clip name, `hf-hub:...` or `local-dir:...`, as open_clip takes it."""
    local_dir: bool
    """Whether the weights' folder is a complete open_clip model (configuration, weights, tokenizer)."""
    weights_path: str
    """The weights file, as the machine that runs Triton sees it; relative to the model's version folder if copied."""
    weights_digest: str
    """SHA-256 of that file, hexadecimal."""
    preprocess: dict[str, Any]
    """open_clip's preprocessing configuration: size, mean, std, interpolation, resize_mode, fill_color, mode."""
    embedding_size: int
    """D, dimensions of an embedding; 0 for a model that takes picture and text together."""
    image_height: int
    """Rows of the model's input."""
    image_width: int
    """Columns of the model's input."""
    context_length: int
    """Longest text in tokens, start and end tokens included."""
    vocabulary_size: int
    """Number of tokens that the text tower knows; 0 if unknown."""
    logit_scale: float
    """Factor from cosine to logit (the exponential of open_clip's parameter)."""
    logit_bias: float
    """Added to the logit; 0 for a CLIP-type model."""
    sigmoid: bool
    """Whether the model was trained with the sigmoid loss (SigLIP), so that sigmoid(logit) is a probability."""
    precision: str
    """open_clip's precision: fp32, fp16 or bf16."""
    needs: list[str]
    """Packages that a tower needs (timm, transformers); Triton's processes start without the others."""
    tokenizer: dict[str, Any]
    """Which tokenizer it has: see vocabularies.py."""
    trim_padding: bool
    """Whether cutting a batch of texts after its last end-of-text token is exact (causal tower pooling there)."""

    @property
    def preprocessing_digest(self) -> str:
        """SHA-256 of the preprocessing's parameters and of the rule for reading pictures, hexadecimal."""
        text = json.dumps(
            {"open_clip": self.preprocess, "picture_rule": PICTURE_RULE}, sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def towers(self) -> tuple[str, ...]:
        """Which Triton models it has."""
        return TOWERS if self.embedding_size else ("joint",)

    def to_json(self, **extra: object) -> str:
        """The card, with facts only for the Triton model, as one line of ASCII."""
        return json.dumps({**dataclasses.asdict(self), **extra}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Read a card back; other facts are ignored.

        Raises ValueError if a fact is missing.
        """
        facts = json.loads(text)
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in facts]
        if missing:
            raise ValueError(f"the model's card lacks {', '.join(missing)}: build the model repository again")
        return cls(**{name: facts[name] for name in names})
