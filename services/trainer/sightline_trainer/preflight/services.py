"""Services: whether sampler and scorer allow what a recipe needs, and read pictures as its update does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sightline.errors import PreconditionFailed, SightlineError
from sightline.sampler import Policies
from sightline.scorer import Models
from sightline.unreached import advice, away

from sightline_trainer.needs import Needs
from sightline_trainer.preflight.finding import Finding, found_by
from sightline_trainer.recipe import Recipe
from sightline_trainer.records.prompt import Prompt
from sightline_trainer.same_pictures import check_rule
from sightline_trainer.session import Session


async def services(session: Session, prompts: Sequence[Prompt] = ()) -> list[Finding]:
    """Compare the services' capabilities with the recipe and some of its prompts; an unavailable service is a finding
    too."""
    recipe, found = session.recipe, list[Finding]()
    try:
        told = await session.sampler.policies()
        found += [*sampler(recipe, told), *conversations(prompts, told)]
    except SightlineError as error:
        found.append(found_by(error, fix=_fix(error, "sampler", recipe.sampling.address)))
    try:
        found += scorer(recipe, await session.scorer.list_models())
    except SightlineError as error:
        found.append(found_by(error, fix=_fix(error, "scorer", recipe.reward.address)))
    return found


def _fix(error: SightlineError, service: str, address: str | None) -> str:
    """What to do; "" for what the error's own text says."""
    if told := advice(error, service):
        return f"the {service} at {address}: {told}"
    return f"check that the {service} at {address} runs and is reachable" if away(error) else ""


def sampler(recipe: Recipe, told: Policies) -> Iterator[Finding]:
    """LIMIT_TOO_LOW, PICTURE_RULE_DIFFERS; POLICY_KIND_UNSUPPORTED if it can't load the update's kind of policy."""
    needs, can = Needs.of(recipe), told.capabilities
    yield from _same_rule("sampler", recipe.sampling.address, can.picture_rule)
    yield from _allowed(needs.candidates_key, needs.candidates, "sampler", "limits.max_candidates", can.max_candidates)
    yield from _allowed("sampling.max_tokens", needs.tokens, "sampler", "limits.max_tokens", can.max_tokens)
    if (can.lora if recipe.dpo.train == "lora" else can.full) == "none":
        yield Finding(
            "POLICY_KIND_UNSUPPORTED",
            f"dpo.train is {recipe.dpo.train}, but the sampler's engine {can.engine} can't load such a policy",
            "set dpo.train to the other kind, or use another engine",
        )
    elif recipe.dpo.train_projector and not can.engine.startswith("transformers"):
        yield Finding(
            "POLICY_KIND_UNSUPPORTED",
            f"dpo.train_projector is set, and the sampler's engine {can.engine} cannot load a projector beside an "
            f"adapter",
            "leave it out, or use the engine transformers; `sightline policies merge` makes whole checkpoints",
        )


def conversations(prompts: Sequence[Prompt], told: Policies) -> Iterator[Finding]:
    """ONE_IMAGE_ONLY, LIMIT_TOO_LOW: prompts have more images or turns than the sampler takes."""
    can = told.capabilities
    images = max((len(prompt.images) for prompt in prompts), default=1)
    turns = max((len(prompt.asked()) for prompt in prompts), default=1)
    if images > 1 and can.one_image_only:
        yield Finding(
            "ONE_IMAGE_ONLY",
            f"data.train has prompts with {images} images, and the sampler's model takes one: {can.one_image_only}",
            "use another model, or prompts with one image",
        )
    else:
        yield from _allowed("images of a prompt", images, "sampler", "limits.max_images", max(1, can.max_images))
    yield from _allowed("turns of a prompt", turns, "sampler", "limits.max_turns", max(1, can.max_turns))


def scorer(recipe: Recipe, told: Models) -> Iterator[Finding]:
    """LIMIT_TOO_LOW, PICTURE_RULE_DIFFERS, MODEL_NOT_FOUND; REWARD_MODEL_DIFFERS if it has another than reward.source.

    Only an open_clip name is compared: a directory may have any name on the scorer's machine."""
    yield from _same_rule("scorer", recipe.reward.address, told.picture_rule)
    needs = Needs.of(recipe)
    yield from _allowed("texts of a prompt", needs.texts, "scorer", "limits.max_texts", told.limits.max_texts)
    names = [model.name for model in told.models]
    if recipe.reward.model and recipe.reward.model not in names:
        yield Finding(
            "MODEL_NOT_FOUND",
            f"reward.model is {recipe.reward.model}, and the scorer has {', '.join(names)}",
            "name one of these, or leave reward.model empty for its default",
        )
        return
    source, asked = recipe.reward.source, recipe.reward.model
    if source and not {":", "/"} & set(source):
        answers = next((one for one in told.models if (one.name == asked if asked else one.is_default)), None)
        if answers is not None and answers.architecture != source:
            yield Finding(
                "REWARD_MODEL_DIFFERS",
                f"reward.source is {source}, but the scorer at {recipe.reward.address} gives rewards by its model "
                f"{answers.name}, {answers.architecture}",
                "start that scorer with reward.source's model or name another scorer; reward.source is only for a "
                "scorer that `sightline run` starts",
                "warning",
            )


def parts(session: Session) -> Iterator[Finding]:
    """Whether the recipe's sources and rewards find the files that they need."""
    for make in (session.sources, session.judge):
        try:
            make()
        except SightlineError as error:
            yield found_by(error)


def _same_rule(service: str, address: str | None, rule: str) -> Iterator[Finding]:
    try:
        check_rule(service, address or "", rule)
    except PreconditionFailed as error:
        yield found_by(error, fix="run the same release of Sightline on both")


def _allowed(key: str, wanted: int, service: str, setting: str, most: int) -> Iterator[Finding]:
    if wanted > most:
        yield Finding(
            "LIMIT_TOO_LOW",
            f"{key}: the recipe needs {wanted}, but the {service} allows {most}",
            f"lower that, or raise its {setting}",
        )
