"""The model card: what the weights are, how they were made, what was measured, and within what tolerance."""
# ruff: noqa: E501 (Markdown tables)

from __future__ import annotations

from typing import Any, Final

from sightline_playground.bands import BANDS
from sightline_playground.measure import SCENES, SEED

_HEAD: Final = """\
# Model card: the playground's tiny CLIP and tiny LVLM

Two models for a small drawn world (1-4 coloured shapes in a 3 x 3 grid, 48 x 48 pixels). They replace a real CLIP and a real
LLaVA in tests and demos, load through the same calls, and have no other use. Apache-2.0, like the code that made them.

| | directory | what | parameters |
|---|---|---|---|
| scorer | `clip/` | open_clip CLIP: ViT of 3 layers, width 96, patch 16; causal text tower of 2 layers, width 96, 77 tokens | {scorer_parameters:,} |
| LVLM | `llava/` | `LlavaForConditionalGeneration`: the scorer's own vision tower ({tower_parameters:,} parameters, frozen), projector, Llama of 4 layers, width 128 | {lvlm_parameters:,} |

All in float32 safetensors, {megabytes:.1f} MB in all.

```python
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:playground/weights/clip")
tokenizer = open_clip.get_tokenizer("local-dir:playground/weights/clip")

model = AutoModelForImageTextToText.from_pretrained("playground/weights/llava")
processor = AutoProcessor.from_pretrained("playground/weights/llava")
```

## Measured

On {test_scenes} held-out test scenes (seed {test_seed}), none of which was in training, in any jitter. "Sampled" is temperature 1 without
truncation, "greedy" is temperature 0. The tolerance is the band for a newly made playground
(one seed was measured); `python -m sightline_playground check` compares with it.

| number | value | tolerance | what |
|---|---|---|---|
"""

_TAIL: Final = """
## How made

`python -m sightline_playground make --seed {seed}`, from scratch: {scenes:,} training scenes; the scorer took {scorer_seconds} s, the
LVLM {lvlm_seconds} s of a busy core. `--keep-scorer` trains only the LVLM.

**Scorer.** {scorer}. Contrastive, with in-batch negatives and, for each scene, three hard negatives (an
object added, left out, changed). The scorer is good, but neither perfect nor too certain, like real ones. The
logit scale is fixed at 100, the final value of OpenAI's CLIP, so that cosines have the same scale. A share of the training
captions has an error, as on the web, which bounds the log-odds that it can reach. Training stops early. An earlier scorer
without this noise made no mistakes, and one object changed CLIPScore by 6 to 50 points, unlike any real reward.

**LVLM.** {lvlm}. Learns captions and, in a share of its steps, yes/no answers. Its hallucinations come from a
language prior: after an object, its training captions name that object's fixed companion with the stated probability, even if it is not in
the picture. Companions are mentioned briefly ("and a green ring"), true objects with a place ("a red star at the top left"), so a
hallucination is a small part of a caption's length. True objects are sometimes mentioned in the short form too, and companions are
sometimes really there, so neither form nor pair reveals a hallucination. Training captions sometimes omit a true object, so that cover can
rise as well as fall. In training, questions about an absent companion are answered "yes" with the stated probability, so that POPE's
adversarial part shows the same prior.

## Limits

The world is closed: any word outside it becomes `<unk>`. The scorer has seen captions of this world only; texts unlike them
get scores that mean nothing. Numbers of an alignment on the playground say that the machinery works, not how a real LVLM will do.
"""


def card(numbers: dict[str, float], facts: dict[str, Any]) -> str:
    """MODEL_CARD.md's text."""
    rows = []
    for name, value in numbers.items():
        band = BANDS.get(name)
        tolerance, what = (f"{band.low:g} .. {band.high:g}", band.what) if band else ("", "")
        rows.append(f"| `{name}` | {value:.3f} | {tolerance} | {what} |")
    head = _HEAD.format(
        scorer_parameters=facts["parameters"]["scorer"],
        lvlm_parameters=facts["parameters"]["lvlm"],
        tower_parameters=facts["parameters"]["vision_tower"],
        megabytes=facts["bytes"] / 1e6,
        test_scenes=SCENES,
        test_seed=SEED,
    )
    tail = _TAIL.format(
        seed=facts["seed"],
        scenes=facts["scenes"],
        scorer_seconds=facts["seconds"]["scorer"],
        lvlm_seconds=facts["seconds"]["lvlm"],
        scorer=_settings(facts["scorer"]),
        lvlm=_settings(facts["lvlm"]),
    )
    return head + "\n".join(rows) + "\n" + tail


def _settings(recipe: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in recipe.items() if not isinstance(value, dict)) + "".join(
        f"; {key}: " + ", ".join(f"{inner} {value}" for inner, value in group.items())
        for key, group in recipe.items()
        if isinstance(group, dict)
    )
