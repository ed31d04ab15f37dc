"""`sightline export`: the pairs of a run as a preference dataset that TRL's DPOTrainer takes as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
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
images; beside them stand the sampled token ids, both rewards, margin, weight, rule, sources and the policy version of
each side.

```python
from datasets import load_dataset
pairs = load_dataset("{to}", split="train")
```
"""


def export(run: Path, to: str, as_json: bool) -> None:
    """Write all iterations' pairs to a directory, or push them to the hub.

    Args:
        run: a run directory.
        to: a directory that is not there yet, or `hub:ORG/NAME`.

    Raises:
        NotFound: there is no run, or it has no pairs yet.
        AlreadyExists: the directory is there.
        InvalidInput: the hub is meant, but no name on it is given.
        Unavailable: the hub can't be reached, or does not take the dataset.
    """
    import datasets
    from huggingface_hub.errors import HFValidationError
    from sightline_trainer.runs import RunDirectory

    if to in ("hub", HUB):
        raise InvalidInput(f"--to {to}: say under which name, hub:ORG/NAME", reason="DATASET")
    directory = RunDirectory(run)
    recipe = directory.recipe()
    files = sorted(str(path) for path in (directory.root / "iterations").glob("*/pairs.parquet"))
    if recipe is None or not files:
        raise NotFound(f"no pairs at {run}: name a run that has finished an iteration's pairs", reason="NO_PAIRS")
    datasets.disable_progress_bars()
    pairs = datasets.load_dataset("parquet", data_files=files, split="train")
    told = {"run": directory.id, "pairs": len(pairs), "iterations": len(files), "to": to}
    if to.startswith(HUB):
        try:
            pairs.push_to_hub(to.removeprefix(HUB))
        except HFValidationError as error:
            raise InvalidInput(f"{to} names no dataset on the hub: {error}", reason="DATASET") from error
        except Exception as error:  # of the hub, or of whichever HTTP package its client uses
            raise Unavailable(
                f"the hub did not take the dataset (`hf auth login` first?): {error}", reason="STORAGE_UNAVAILABLE"
            ) from error
        _tell(told, as_json)
        return
    target = Path(to)
    if target.exists():
        raise AlreadyExists(f"{target} is there already; name a new directory", reason="DIRECTORY_EXISTS")
    (target / "data").mkdir(parents=True)
    pairs.to_parquet(target / "data/train-00000.parquet")
    (target / "recipe.yaml").write_text((directory.root / "recipe.yaml").read_text())
    (target / "README.md").write_text(CARD.format(recipe=recipe.name, model=recipe.model, **told))
    _tell(told, as_json)


def _tell(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(told))
    else:
        line = "[bold]exported[/bold] {pairs} pairs of {iterations} iterations to {to}".format(**told)
        Console().print(line, soft_wrap=True)
