"""Write the documentation's reference pages from the code when the site is built (a hook of mkdocs).

reference/cli.md        every command with its help
reference/recipe.md     every key of a recipe: type, default, meaning
reference/settings.md   every setting of the three services and of the gateway
reference/sdk.md        the clients and their types, from their docstrings (mkdocstrings)
reference/*-proto.md    every message, field and call of the protos
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from sightline_chassis.keys import keys_of
from sightline_chassis.settings import Section

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads this file alone
from proto_pages import page

ROOT = Path(__file__).parents[1]
PROTOS = ("scorer", "sampler", "trainer")
SDK = {
    "Clients": [
        *("sightline.scorer.client.ScorerClient", "sightline.sampler.client.SamplerClient"),
        "sightline.runs.client.RunClient",
    ],
    "What they answer": ["sightline.scorer.types", "sightline.sampler.types", "sightline.runs.types"],
    "Waiting": ["sightline.patience"],
    "Errors": ["sightline.errors"],
    "Rewards": ["sightline.integrations.trl", "sightline.integrations.verl", "sightline.integrations.openrlhf"],
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add our files to those of the site (a hook of mkdocs)."""
    for name, text in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links out of docs/ into plain text: the repository's files are not part of the site."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"`\1`", markdown)


def pages() -> dict[str, str]:
    """All reference pages by name."""
    from sightline_cli import failures
    from sightline_sampler.settings import SamplerSettings
    from sightline_scorer.gateway.settings import GatewaySettings
    from sightline_scorer.settings import ScorerSettings
    from sightline_trainer.recipe import Recipe
    from sightline_trainer.settings import TrainerSettings

    services = {
        "Scorer": ("scorer", ScorerSettings),
        "Sampler": ("sampler", SamplerSettings),
        "Trainer": ("trainer", TrainerSettings),
        "Gateway": ("scorer-http", GatewaySettings),
    }
    settings = "".join(
        f"\n## {name}\n\n`sightline serve {word} --set KEY=VALUE`, or `SIGHTLINE_{name.upper()}__A__B=VALUE` "
        f"in the environment, or a YAML file by `--config`.\n\n{table(model)}"
        for name, (word, model) in services.items()
    )
    return {
        "cli": f"# Command line\n\n{inspect.cleandoc(failures.__doc__ or '')}\n\n{''.join(commands())}",
        "recipe": "# Recipe\n\nEvery key may be overridden by `--set key.subkey=value`; `sightline recipe explain KEY` "
        f"prints the same; `sightline recipe show` prints all values of a recipe.\n\n{table(Recipe)}",
        "settings": f"# Settings\n{settings}",
        "sdk": sdk(),
        **{f"{name}-proto": page(ROOT / f"protos/sightline_{name}/v1/{name}.proto") for name in PROTOS},
    }


def sdk() -> str:
    """The SDK's names, each with its docstring."""
    parts = [
        "# SDK\n\n`pip install sightline`: the clients of the three services, their types and errors. "
        "[Clients](../clients.md) has examples.\n"
    ]
    for title, names in SDK.items():
        parts.append(f"\n## {title}\n")
        parts += [f"\n::: {name}\n" for name in names]
    return "".join(parts)


def table(model: type[Section]) -> str:
    """A Markdown table of all keys."""
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for key in keys_of(model):
        cells = (f"`{key.path}`", key.type, f"`{key.default}`" if key.default else "", key.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def commands() -> Iterator[str]:
    """Each command's help, sub-commands after their group."""
    yield _help([])
    for name in _names([]):
        yield _help([name])
        for sub in _names([name]):
            yield _help([name, sub])


def _names(path: list[str]) -> list[str]:
    import typer
    from sightline_cli.main import app

    command: Any = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    return list(getattr(command, "commands", {}))


def _help(path: list[str]) -> str:
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "sightline_cli", *path, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT).stdout
    body = "\n".join(line.rstrip() for line in done.strip().splitlines())
    return f"## sightline {' '.join(path)}\n\n```text\n{body}\n```\n\n"
