"""The skilled LVLM's model card."""
# ruff: noqa: E501 (Markdown tables)

from __future__ import annotations

from typing import Any, Final

from sightline_playground.bands import SKILLED_BANDS
from sightline_playground.skilled_measure import SCENES, SEED
from sightline_playground.skills import ASK, IMPROVE, RATINGS, THERE, TOLD, TRUE

_TEXT: Final = """\
# Model card: the playground's skilled LVLM

`playground:llava-skilled` is the plain LVLM (`playground:llava`) with four more skills. It **rates** answers from 1 to 5,
**improves** them, **asks** questions about the picture and **answers** yes or no. It stands in for a judge such as a
larger LVLM, or for a policy that judges itself, and has no other use. Same architecture and vision tower,
{parameters:,} parameters, float32 safetensors, {megabytes:.1f} MB. Apache-2.0, like the code that made it.

It still describes pictures with the plain LVLM's language prior, so sampled captions hallucinate. Asked to rate or to
improve an answer, the same model knows better. So it can be the policy and the judge at once.

## Prompts

It knows only these wordings (`sightline_playground/skills.py`), which are those of the recipes. A word that occurs in none
of them becomes `<unk>`.

| skill | prompt | right reply |
|---|---|---|
{prompts}

## Measured

Measured on {scenes} held-out validation scenes (seed {seed}). Decoding is greedy; captions and questions are sampled at
temperature 1. `rate_..._chance` is the share of the commonest mark. `ask_chance` is the share of questions that fit
another scene's picture. Yes and no are equally often right, so chance is 0.5. `improve_given_...` is the answer before
its improvement. A model that is made again must stay within the tolerance; `python -m sightline_playground check` checks
this.

| number | value | tolerance | what |
|---|---|---|---|
{numbers}

## How made

`python -m sightline_playground skill --seed {made_seed}`, from the plain LVLM, on the {training:,} scenes of its own training: {recipe}.
It took {seconds} s on a busy core. The scene gives every reply. Marks count the objects that are wrong or missing. An
improvement keeps the answer's opening and phrases. A question is about what is there. Descriptions follow the plain
LVLM's prior.

## Limits

The world is closed, marks follow our formulas, and `ethics` is always 5, because nothing in this world does harm. Answers
about relations ("is the red star left of the blue ring ?") are at chance, as the plain LVLM's are. Other answers are
right about as often as the plain LVLM's (`pope_...` in its card). Captions are a little worse than the plain LVLM's, and
most sampled questions are about something that is not there. The training is short: losses were still falling at its
end. A policy whose style is far from the plain LVLM's may write texts that this judge has never seen.
"""
_REPLIES: Final = {
    "help": "5, minus 1 for each object that is wrong or missing; at least 1",
    "faith": "5, minus 2 for each wrong object; at least 1",
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
        ("improve", IMPROVE, "the answer with exactly the objects of the scene"),
        ("ask", ASK, "a question about an object, its colour, or where two objects are"),
        ("answer", TRUE, "yes or no"),
        ("answer", THERE, "yes or no; the plain LVLM's questions work too"),
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
