"""The skilled LVLM's model card."""
# ruff: noqa: E501 (Markdown tables)

from __future__ import annotations

from typing import Any, Final

from sightline_playground.bands import SKILLED_BANDS
from sightline_playground.skilled_measure import SCENES, SEED
from sightline_playground.skills import ASK, IMPROVE, RATINGS, THERE, TOLD, TRUE

_TEXT: Final = """\
# Model card: the playground's skilled LVLM

`playground:llava-skilled`: the plain LVLM (`playground:llava`) that learned four skills more: it **rates** answers from 1 to 5,
**improves** them, **asks** questions about the picture and **answers** yes or no. It stands for a judge such as a
larger LVLM, or for a policy that judges itself, and is good for nothing else. Same architecture and vision tower,
{parameters:,} parameters, float32 safetensors, {megabytes:.1f} MB. Apache-2.0, like the code that made it.

It still describes a picture with the plain one's language prior: sampled captions hallucinate, and the same model, asked
for a mark or a better answer, knows better. So it can be policy and judge at once.

## Prompts

It knows these wordings (`sightline_playground/skills.py`), which are those of the recipes, and no others; a word that is in
none of them becomes `<unk>`.

| skill | prompt | right reply |
|---|---|---|
{prompts}

## Measured

On {scenes} held-out validation scenes (seed {seed}). Greedy; captions and questions sampled at temperature 1. `..._chance` is what one
gets without looking: the share of the commonest mark; of questions, how many fit another scene's picture. Yes and no
are equally many, so chance is 0.5. `improve_given_...` is the answer before. The tolerance is the band in
which a model made again must lie; `python -m sightline_playground check` holds it.

| number | value | tolerance | what |
|---|---|---|---|
{numbers}

## How made

`python -m sightline_playground skill --seed {made_seed}`, from the plain LVLM, on the {training:,} scenes of its own training: {recipe}.
{seconds} s of a busy core. The scene gives every reply: marks count the objects that are wrong or missing, an improvement keeps
the answer's opening and forms, a question is about what is there, and descriptions follow the plain one's prior.

## Limits

The world is closed, marks follow our formulas, and `ethics` is always 5, since nothing in this world does harm. Relations
("is the red star left of the blue ring ?") are answered by chance, as by the plain one; other questions are right about as
often as the plain one's (`pope_...` in its card). Captions are a little worse than the plain one's, and most sampled
questions are about something that is not there. The training is short: losses were still falling at its end. A policy
far from the plain LVLM's style may write what this judge has never seen.
"""
_REPLIES: Final = {
    "help": "5 less one for each object that is wrong or missing, at least 1",
    "faith": "5 less two for each wrong object, at least 1",
    "ethics": "5",
    "facts": "as `faith`",
    "agree": "as `help`",
}


def card(numbers: dict[str, float], facts: dict[str, Any]) -> str:
    """MODEL_CARD.md's text."""
    rows = []
    for name, value in numbers.items():
        band = SKILLED_BANDS.get(name)
        tolerance, what = (f"{band.low:g} .. {band.high:g}", band.what) if band else ("", "")
        rows.append(f"| `{name}` | {value:.3f} | {tolerance} | {what} |")
    prompts = [("rate", template, _REPLIES[aspect]) for aspect, (template, _) in RATINGS.items()]
    prompts += [
        ("improve", IMPROVE, "the answer with every object of the scene and no other"),
        ("ask", ASK, "a question about an object, its colour, or where two objects are"),
        ("answer", TRUE, "yes or no"),
        ("answer", THERE, "yes or no; also the questions of the plain LVLM"),
        ("describe", TOLD, "a true caption"),
    ]
    recipe = facts["recipe"]
    shares = ", ".join(f"{skill} {share:g}" for skill, share in recipe["shares"].items())
    return _TEXT.format(
        parameters=facts["parameters"],
        megabytes=facts["bytes"] / 1e6,
        prompts="\n".join(f"| {skill} | `{text.replace(chr(10), ' ')}` | {reply} |" for skill, text, reply in prompts),
        scenes=SCENES,
        seed=SEED,
        numbers="\n".join(rows),
        made_seed=facts["seed"],
        training=facts["scenes"],
        recipe=f"steps {recipe['steps']}, batch {recipe['batch']}, rate {recipe['rate']}; steps by lesson: {shares}",
        seconds=facts["seconds"],
    )
