"""Documented commands: those in README, docs, the services' READMEs, recipes' headers and examples, as words."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from running import ROOT

PROGRAMS = (
    "sightline", "python", "python3", "make", "pip", "uv", "docker", "kubectl", "helm", "curl", "grpcurl", "git",
    "export", "npm", "node", "go", "buf", "echo", "kill", "promtool", "torchrun", "vllm",
    "text-generation-launcher", "cp", "cd", "source",
)  # fmt: skip
"""First words of a listing's lines that are commands."""
NOT_RUN = {
    "docker": "builds images; `tests/unit/test_chart_policy.py` checks the Dockerfiles",
    "kubectl": "needs a cluster",
    "helm": "needs a cluster; `make chart` renders the chart, `make chart-run` runs its pods",
    "curl": "`tests/unit/test_scorer_gateway.py` sends the same request",
    "grpcurl": "another project's program; `tests/contract` makes the same calls",
    "go": "fetches modules; the tests check the protos that it uses",
    "buf": "writes Go stubs, for which a plugin must be built",
    "npm": "fetches packages; `tests/integration/test_scorer_examples.py` runs it, slow",
    "node": "as for npm",
    "text-generation-launcher": "starts TGI on a GPU; `tests/contract/test_sampler_tgi.py` has its protocol",
    "vllm": "starts an engine on a GPU; `tests/contract/test_sampler_vllm.py` has its protocol",
    "promtool": "`tests/unit/test_alerts.py` runs it if it is installed",
    "torchrun": "starts several processes, as `tests/integration/test_trainer_distributed.py` does",
    "uv": "installs packages, as `.ci/run` does",
    "pip": "installs packages; `tests/integration/test_wheel.py` installs the wheel",
    "python3": "creates an environment, as `.ci/run` does",
    "export": "sets a variable of the shell",
    "source": "enters an environment",
    "echo": "writes a line",
    "cd": "changes the directory",
    "cp": "copies a file",
    "make demo": "minutes; `.ci/run` runs `make test` in a fresh clone, `test_wheel.py` the quick demo",
    "make test": "the suite that contains this list's test",
    "make chart-run": "minutes; `tests/integration/test_chart_run.py`, slow",
    "make monitor": "starts Prometheus; `tests/unit/test_alerts.py` has its rules",
    "sightline triton install": "fetches the server; `tests/unit/test_triton_install.py` unpacks a small one",
    "sightline demo": "`tests/integration/test_wheel.py` runs it from the wheel",
    "sightline scorer reload": "needs a scorer with `reload.rpc`; `tests/integration/test_scorer_models.py` has one",
    "sightline ui": "`tests/integration/test_console_browser.py` runs it, in a browser",
    "sightline generate": "needs a diffusion model; `tests/integration/test_generated_pool.py` has the playground's",
    "sightline serve sampler --set engine.kind=tgi": "needs TGI; `tests/integration/test_engine_loops.py`",
    "sightline serve sampler --set engine.kind=vllm": "needs vLLM; `tests/integration/test_engine_loops.py`",
    "sightline --tls-ca": "needs a cluster's certificate; `tests/integration/test_doctor_live.py` has TLS",
    "sightline doctor --live": "needs three services; `tests/integration/test_doctor_live.py` runs it",
    "sightline eval run --sampler 127.0.0.1:50052 --suite pope": "`tests/integration/test_eval_run.py` has the files",
    "python -m sightline_trainer.evaluation.lmms_eval_model": "needs lmms-eval; tests/contract/test_lmms_eval_model.py",
    "python -m sightline_playground make": "trains both models; `tests/unit/test_playground_models.py`",
    "python -m sightline_playground skill": "trains the LVLM on; `tests/unit/test_playground_skills.py`",
    "python -m sightline_playground check": "measures for minutes what `make` writes",
    "python examples/": "`tests/integration/test_scorer_examples.py` runs each",
    "sightline run recipes/*http://*": "asks a judge, writer, detector or model; `test_recipes.py` has small ones",
    "sightline run recipes/*/picks.jsonl*": "reads a person's picks; `test_recipes.py` has the truth's",
    "sightline run recipes/*playground:llava-skilled*": "`tests/integration/test_recipes.py` runs each, cut short",
    "sightline run recipes/*.yaml": "minutes to an hour; `tests/integration/test_recipes.py` runs each, cut short",
    "sightline run recipes/clip_dpo.yaml --set 'dpo.launch": "`test_trainer_distributed.py` has two processes",
}
"""Why no test with `documented_commands` in its name runs a documented command, by the command's beginning. All are
parsed by `tests/unit/test_documented_commands.py`, as far as their program is ours."""
_ENVIRONMENT = re.compile(r"(?:[A-Z_]+=\S+ )*")
_FENCES = ("", "sh", "bash", "console")
_INLINE = re.compile(r"`(sightline [^`\n]+)`")


@dataclass(frozen=True)
class Documented:
    """A command and its place."""

    file: str
    line: int
    text: str
    fenced: bool = True
    """Whether it is in a listing, not in a sentence."""

    @property
    def id(self) -> str:
        """The place, for people."""
        return f"{self.file}:{self.line}"

    @property
    def bare(self) -> str:
        """The command without the variables set before it."""
        return _ENVIRONMENT.sub("", self.text)

    @property
    def program(self) -> str:
        """The program that it runs."""
        return self.bare.split()[0]

    @property
    def why_not_run(self) -> str:
        """The reason in `NOT_RUN`; empty if a test runs it."""
        return next((why for begin, why in NOT_RUN.items() if self.begins(begin)), "")

    def begins(self, begin: str) -> bool:
        """Whether it has this beginning; if `begin` contains `*`, whether all of it matches."""
        return fnmatch(self.bare, begin) if "*" in begin else self.bare.startswith(begin)

    def words(self) -> list[str]:
        """The words as a shell splits them, without variables before, a comment after, and `[--an OPTION]`."""
        return shlex.split(re.sub(r" \[--[^\]]*\]", "", self.bare), comments=True)


def documented() -> list[Documented]:
    """All documented commands."""
    found: list[Documented] = []
    for file in _texts():
        found += _of_markdown(file)
    for file in sorted((ROOT / "recipes").glob("*.yaml")):
        lines = [line[1:] if line.startswith("#") else "" for line in file.read_text().splitlines()]
        found += _commands(file, [re.sub(r"^\s*[\w ]+: +(?=sightline )", "    ", line) for line in lines], [])
    for file in sorted((ROOT / "examples").rglob("*.py")):
        docstring = file.read_text().split('"""')[1]
        found += _commands(file, docstring.splitlines(), [])
    return found


def _texts() -> Iterator[Path]:
    yield from (ROOT / "README.md", ROOT / "CONTRIBUTING.md")
    for place in ("docs", "services", "examples", "playground", "helm"):
        for file in sorted((ROOT / place).rglob("*.md")):
            # A lab book records what was run on its day; the reference is generated from the code.
            if file.name not in ("log.md", "MODEL_CARD.md") and "docs/reference" not in str(file):
                yield file


def _of_markdown(file: Path) -> list[Documented]:
    fence: str | None = None
    listing, inline = [], []
    for line in file.read_text().splitlines():
        if line.lstrip().startswith("```"):
            fence = line.strip()[3:] if fence is None else None
            listing.append("")
        elif fence is not None:
            listing.append(line if fence in _FENCES else "")
        elif line.startswith("    "):
            listing.append(line)
        else:
            listing.append("")
            inline += [(len(listing), text) for text in _INLINE.findall(line)]
    return _commands(file, listing, inline)


def _commands(file: Path, lines: list[str], inline: list[tuple[int, str]]) -> list[Documented]:
    """A command may continue after a backslash at the end of a line, and inside a quoted text."""
    name = str(file.relative_to(ROOT))
    found = [Documented(name, number, text, fenced=False) for number, text in inline]
    number = 0
    while number < len(lines):
        first, text = number + 1, lines[number].strip()
        number += 1
        words = _ENVIRONMENT.sub("", text).split()
        if not words or words[0] not in PROGRAMS:
            continue
        while number < len(lines) and (text.endswith("\\") or _open(text)):
            text = f"{text.removesuffix(chr(92))} {lines[number].strip()}"
            number += 1
        found += [Documented(name, first, part) for part in _parts(text)]
    return found


def _open(text: str) -> bool:
    """Whether it ends inside a quoted text."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return True
    return False


def _parts(text: str) -> list[str]:
    """`a && b` are two, `a | b` is its first."""
    lexer = shlex.shlex(text, posix=False, punctuation_chars="&|>")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    skipping = False
    for word in lexer:
        if word == "&&":
            parts.append([])
            skipping = False
        elif set(word) <= set("|>&"):
            skipping = True
        elif not skipping:
            parts[-1].append(word)
    return [" ".join(part) for part in parts if part]
