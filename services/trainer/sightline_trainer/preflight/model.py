"""Model: whether sampler and update can use a checkpoint, and which parts an update would train.

Everything is read from its config and processor: no weights are loaded, and code in a checkpoint is never run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sightline.errors import SightlineError
from sightline.sampler.turns import user_turn

from sightline_trainer.chat_template import ChatTemplate
from sightline_trainer.model_processor import ModelProcessor
from sightline_trainer.preflight.finding import Finding, clause, found_by
from sightline_trainer.preflight.sizes import Sizes
from sightline_trainer.recipe import Recipe

# Errors of transformers, tokenizers and a checkpoint's template for files that they can't use.
_REFUSALS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, AssertionError)
_ASKED = "What is in it?"
_IMAGE = "an image-text-to-text model of transformers"
_TRAINS = 'take a model of a family that trains (services/trainer/README.md, "Families")'


def checkpoint(made: ModelProcessor) -> Iterator[Finding]:
    """Check that transformers knows the checkpoint's kind, its processor is complete, and its chat template shows an
    image and the text.

    MODEL_NOT_FOUND, MODEL_NOT_TRANSFORMERS, MODEL_TAKES_NO_IMAGES, PROCESSOR_UNUSABLE, NO_CHAT_TEMPLATE,
    CHAT_TEMPLATE_UNUSABLE.
    """
    from transformers import PreTrainedConfig

    model = made.model
    try:
        config, _ = PreTrainedConfig.get_config_dict(model)
    except _REFUSALS as error:
        yield _not_found(model, error)
        return
    if not config:
        yield _not_found(model, "it has no config.json")
        return
    if fault := _kind_fault(model, config):
        yield fault
        return
    try:
        processor = made.load()
    except SightlineError as error:
        yield found_by(error, fix="leave out min_pixels and max_pixels, or set values that it supports")
        return
    except _REFUSALS as error:
        yield Finding(
            "PROCESSOR_UNUSABLE",
            f"the processor of {model} can't be loaded: {clause(error)}",
            "complete its files (preprocessor_config.json or processor_config.json, tokenizer.json) from the original",
        )
        return
    if not getattr(processor, "chat_template", None):
        yield Finding(
            "NO_CHAT_TEMPLATE",
            f"{model} has no chat template, so no prompt can be rendered for it",
            "put the model's chat_template.jinja beside its config.json, or name one in the recipe's chat_template",
        )
    elif made.chat_template is not None and (why := _template_fault(made)):
        yield Finding("CHAT_TEMPLATE_UNUSABLE", why, "compare it with the model's own")


def headless(recipe: Recipe) -> Iterator[Finding]:
    """FAMILY_UNSUPPORTED, where no chat template would help: the model's head can't be taken off."""
    from sightline_trainer.dpo.family import without_head

    try:
        without_head(_frame(recipe.base_model)[1])
    except SightlineError as error:
        yield found_by(error, fix=_TRAINS)
    except _REFUSALS:  # `sizes` tells of it, once there is a template
        return


def sizes(recipe: Recipe) -> tuple[Sizes | None, list[Finding]]:
    """What an update trains, on the model without weights: MODEL_UNUSABLE, FAMILY_UNSUPPORTED, LORA_FINDS_NOTHING."""
    from sightline_trainer.dpo.decoder import linear_layers
    from sightline_trainer.dpo.family import Family
    from sightline_trainer.dpo.setup import trained_frame

    model = recipe.base_model
    try:
        config, frame = _frame(model)
    except _REFUSALS as error:
        return None, [
            Finding(
                "MODEL_UNUSABLE",
                f"transformers can't make the model {model} from its config: {clause(error)}",
                "compare its config.json with the original, or use the release of transformers that it was made for",
            )
        ]
    try:
        Family(frame, recipe.processor.load())
    except SightlineError as error:
        return None, [found_by(error, fix=_TRAINS)]
    try:
        trained = trained_frame(recipe, frame)
    except SightlineError as error:
        if error.reason != "LORA_FINDS_NOTHING":
            return None, [found_by(error)]
        inside = linear_layers(frame) or ["none"]
        return None, [
            Finding(
                error.reason,
                str(error),
                f"name layers that it has, such as {inside[len(inside) // 2]}, or leave it out: all of the decoder's",
            )
        ]
    return Sizes.of(trained, config), []


def _frame(model: str) -> tuple[Any, Any]:
    """A model's config, and the model without weights."""
    import torch
    from sightline_chassis.families.auto import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    with torch.device("meta"):  # of this thread alone, unlike accelerate's way
        return config, AutoModelForImageTextToText.from_config(config, dtype=torch.float32)


def _template_fault(made: ModelProcessor) -> str | None:
    """Why the recipe's template can't be used."""
    from jinja2 import TemplateError

    try:
        rendered = ChatTemplate(made).prompt(user_turn(_ASKED, 1))
        words = [{"role": "user", "content": [{"type": "text", "text": _ASKED}]}]
        alone = made.load().apply_chat_template(words, add_generation_prompt=True, tokenize=False)
    except (*_REFUSALS, TemplateError, SightlineError) as error:
        return f"the recipe's chat_template can't be rendered: {clause(error)}"
    if _ASKED not in rendered:
        return "the recipe's chat_template leaves out the user's text"
    if rendered == alone:
        return "the recipe's chat_template has no place for the picture"
    return None


def _kind_fault(model: str, config: dict[str, Any]) -> Finding | None:
    import transformers
    from sightline_chassis.families.auto import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind, made_for = config.get("model_type"), [str(name) for name in config.get("architectures") or ()]
    known = kind in CONFIG_MAPPING
    mapping = AutoModelForImageTextToText._model_mapping
    ours = [each.__name__ for each in _classes(mapping, CONFIG_MAPPING[kind])] if known else []
    foreign = made_for and not any(name in ours or hasattr(transformers, name) for name in made_for)
    if not known or foreign:
        what = f"model_type {kind!r}" + (f", architecture {', '.join(made_for)}" if made_for else "")
        return Finding(
            "MODEL_NOT_TRANSFORMERS",
            f"{model} is not a checkpoint of transformers' own ({what}), and code inside a checkpoint is never run",
            "convert it with `sightline convert`"
            if kind == "mobilevlm"
            else "use a conversion that transformers can load (for LLaVA, llava-hf/...), or convert it",
        )
    if not ours:
        return Finding(
            "MODEL_TAKES_NO_IMAGES",
            f"{model} is a {kind}, which is not {_IMAGE}",
            "name a vision-language model",
        )
    return None


def _classes(mapping: Any, config: Any) -> list[Any]:
    """The image-text-to-text classes of a config's class; none if there is none."""
    if config not in mapping:
        return []
    found = mapping[config]
    return list(found) if isinstance(found, tuple) else [found]


def _not_found(model: str, why: object) -> Finding:
    told = clause(why) if isinstance(why, BaseException) else why
    return Finding(
        "MODEL_NOT_FOUND",
        f"there is no model {model}: {told}",
        "set model to a directory with config.json, or to a name on the Hugging Face hub that this machine can reach",
    )
