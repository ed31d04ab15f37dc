"""`sightline export`: a run's pairs as a preference dataset that TRL's DPOTrainer reads directly."""

from __future__ import annotations

import glob
import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from sightline.errors import AlreadyExists, InvalidInput, NotFound, Unavailable

HUB = "hub:"
CARD = """---
tags: [sightline, dpo, preference, vision-language]
configs:
- config_name: default
  data_files: [{{split: train, path: "data/*.parquet"}}]
---
# Preference pairs of the run `{run}`

{pairs} pairs of {iterations} iterations, made by Sightline with the recipe `{recipe}` (in `recipe.yaml`) from the base
model `{model}`. Columns `images`, `prompt`, `chosen` and `rejected` are TRL's conversational preference format with
images. Further columns: the sampled token ids, both rewards, margin, weight, rule, sources and the policy version of
each side.

`python
from datasets import load_dataset
pairs = load_dataset("{to}", split="train")
`
"""


def export(run: Path, to: str, as_json: bool) -> None:
    """Write all iterations' pairs to a directory, or push them to the hub.

    Args:
        run: a run directory.
        to: a new directory, or `hub:ORG/NAME`.

    Raises:
        NotFound: there is no run, or it has no pairs yet.
        AlreadyExists: the directory exists.
        InvalidInput: `hub:` without a name, or no pair has a readable picture.
        DataCorrupted: a file of pairs is damaged.
        Unavailable: the hub can't be reached, or refuses the dataset.
    """
    import datasets
    from huggingface_hub.errors import HFValidationError
    from sightline_trainer.files import read_table
    from sightline_trainer.runs import RunDirectory

    if to in ("hub", HUB):
        raise InvalidInput(f"--to {to}: add the dataset's name: hub:ORG/NAME", reason="DATASET")
    directory = RunDirectory(run)
    recipe = directory.recipe()
    files = sorted(str(path) for path in (directory.root / "iterations").glob("*/pairs.parquet"))
    if recipe is None or not files:
        raise NotFound(f"no pairs at {run}: name a run that has finished an iteration's pairs", reason="NO_PAIRS")
    for file in files:
        read_table(Path(file), ["prompt_id"])
    datasets.disable_progress_bars()
    pairs = datasets.load_dataset("parquet", data_files=[glob.escape(file) for file in files], split="train")
    pairs, left_out = plain_pairs(trl_prompts(pairs))
    facts = {"run": directory.id, "pairs": len(pairs), "left_out": len(left_out), "iterations": len(files), "to": to}
    if left_out:
        number, why = next(iter(left_out.items()))
        what = f"{len(left_out)} pairs skipped, whose pictures cannot be read; the first is pair {number + 1}: {why}"
        if not len(pairs):
            raise InvalidInput(what, reason="NO_PAIRS")
        Console(stderr=True).print(what, soft_wrap=True, markup=False)
    if to.startswith(HUB):
        try:
            pairs.push_to_hub(to.removeprefix(HUB))
        except HFValidationError as error:
            raise InvalidInput(f"{to} names no dataset on the hub: {error}", reason="DATASET") from error
        except Exception as error:  # from the hub, or from its client's HTTP package
            raise Unavailable(
                f"the hub refused the dataset (run `hf auth login` first?): {error}", reason="STORAGE_UNAVAILABLE"
            ) from error
        _tell(facts, as_json)
        return
    target = Path(to)
    if target.exists():
        raise AlreadyExists(f"{target} already exists; name a new directory", reason="DIRECTORY_EXISTS")
    (target / "data").mkdir(parents=True)
    pairs.to_parquet(target / "data/train-00000.parquet")
    shutil.copyfile(directory.root / "recipe.yaml", target / "recipe.yaml")
    card = CARD.format(recipe=recipe.name, model=recipe.model, **facts)
    (target / "README.md").write_text(card, encoding="utf-8")
    _tell(facts, as_json)


def plain_pairs(pairs: Any) -> tuple[Any, dict[int, str]]:
    """The pairs with pictures that every program reads as the run did, regardless of its treatment of EXIF and
    transparency; and the skipped pairs, by number, with what is wrong with their pictures."""
    import datasets
    from sightline_chassis.images import plain_file
    from sightline_chassis.sections import ImageLimits

    columns = [name for name in pairs.column_names if name.endswith("images")]
    features = pairs.features
    for name in columns:
        pairs = pairs.cast_column(name, datasets.List(datasets.Image(decode=False)))

    left_out: dict[int, str] = {}

    def plain(row: dict[str, Any], number: int) -> dict[str, Any]:
        try:
            return {
                name: [
                    {**image, "bytes": plain_file(image["bytes"] or b"", ImageLimits())[0]} for image in row[name] or []
                ]
                for name in columns
            }
        except InvalidInput as error:
            left_out[number] = error.message
            return {name: [] for name in columns}

    pairs = pairs.map(plain, with_indices=True, load_from_cache_file=False, features=pairs.features)
    if left_out:
        pairs = pairs.select([number for number in range(len(pairs)) if number not in left_out])
    return pairs.cast(features), left_out


def trl_prompts(pairs: Any) -> Any:
    """The pairs without `turns`. If any row has turns, its images are not all before the first user's text. Then all
    prompts become messages of parts, since a column has one form, and `prompt` marks each image's place."""
    if "turns" not in pairs.column_names:
        return pairs
    if not any(pairs["turns"]):
        return pairs.remove_columns("turns")
    features = pairs.features.copy()
    features["prompt"] = features.pop("turns")

    def parts(row: dict[str, Any]) -> dict[str, Any]:
        if row["turns"]:
            return {"prompt": row["turns"]}
        told, messages = False, []
        for message in row["prompt"]:
            first, told = message["role"] == "user" and not told, told or message["role"] == "user"
            shown = [{"type": "image", "text": None}] * len(row["images"]) if first else []
            text = {"type": "text", "text": message["content"]}
            messages.append({"role": message["role"], "content": [*shown, text]})
        return {"prompt": messages}

    return pairs.map(parts, remove_columns="turns", load_from_cache_file=False, features=features)


def _tell(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
    else:
        count = "1 iteration" if facts["iterations"] == 1 else f"{facts['iterations']} iterations"
        line = f"[bold]exported[/bold] {facts['pairs']} pairs of {count} to {escape(str(facts['to']))}"
        Console().print(line, soft_wrap=True)
