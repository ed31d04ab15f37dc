"""The documented commands, run with small instead of real models, on a page's own files and in its order.

Every command of a listing is in one of the groups below or in `documented.NOT_RUN`, which says why it is not run.
"""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented import Documented, documented
from running import ROOT, WEIGHTS, Services
from scorer_gateways import Gateway
from scorer_models import encoded, picture
from sightline_cli.main import app
from sightline_cli.processes import Processes
from sightline_playground.world import COLOURS, SHAPES
from typer.testing import CliRunner

COMMANDS = [command for command in documented() if command.fenced and not command.why_not_run]
RATE = "6e-4"
"""A learning rate belongs to a model's size: this is the playground's, as 5e-6 is one for seven billion parameters."""
SMALL = {
    "iterations": "1",
    "threads": "1",
    "data.prompts_per_iteration": "24",
    "sampling.candidates": "4",
    "evaluation.prompts": "24",
    "evaluation.greedy_prompts": "0",
    "evaluation.diverse_prompts": "0",
    "evaluation.questions": "0",
}
ADDRESS = ("127.0.0.1:5005", "HOST:", "ADDR")


def of(*begins: str, file: str = "") -> list[Documented]:
    """The commands with this beginning, in order."""
    return [each for each in COMMANDS if each.text.startswith(begins) and each.file.startswith(file)]


CHEAP = of(
    "sightline eval chair --captions tests", "sightline eval pope --answers tests", "sightline recipe ",
    "sightline score ", "sightline sample ", "sightline scorer ", "sightline doctor",
    "python -m sightline_playground export",
)  # fmt: skip
SERVE = of("sightline serve ")
HEADERS = of("sightline run ", file="recipes/")
OWN = [command for place in ("README.md", "docs/", "services/") for command in of("sightline run ", file=place)]
AFTER = of("sightline report ", "sightline export ", "sightline policies ")
EVALUATED = of("sightline eval run ", "sightline eval compare ")
RUNS = of("sightline runs ")
REPOSITORY = of("python -m sightline_scorer.triton.repository")


def test_documented_commands_are_all_run_or_have_a_reason() -> None:
    groups = [CHEAP, SERVE, HEADERS, OWN, AFTER, EVALUATED, RUNS, REPOSITORY]
    run = {command.id for group in groups for command in group}
    assert [command.id for command in COMMANDS if command.id not in run] == []
    assert all(groups)


def small(words: list[str], services: Services, playground: Path) -> list[str]:
    """A command's words with this machine's files instead of the reader's."""
    changed = []
    for word in words:
        key, equals, value = word.partition("=")
        match key:
            case _ if value.startswith("playground:"):
                pass
            case "data.train" | "data.test":
                value = str(playground / ("test" if key == "data.test" else "train"))
            case "model" | "engine.model":
                value = str(WEIGHTS / "llava")
            case "data_roots":
                value = f"[{playground}]"
            case "runs" | "recipes" if equals:
                value = str(ROOT / "recipes" if key == "recipes" else "runs")
            case "reward.source" | "models.default.source":
                value = "playground:clip"
            case "sampling.max_tokens" | "candidates.segment.tokens":
                value = "32"
            case "candidates.asked":
                value = value.replace("{who: policy,", "{who: policy, max_tokens: 32,")
            case "dpo.learning_rate" if float(value) < 1e-4:
                value = RATE
            case "reward.pretrained" | "models.default.pretrained" | "models.default.precision":
                value = "null" if key != "models.default.precision" else "fp32"
        word = f"{key}{equals}{value}"
        for theirs, ours in {
            "127.0.0.1:50051": services.scorer,
            "127.0.0.1:50052": services.sampler,
            "ADDR": services.sampler,
            "/data/test": str(playground / "test"),
            "default=ViT-B-32@laion2b_s34b_b79k": f"default=local-dir:{WEIGHTS / 'clip'}",
        }.items():
            word = word.replace(theirs, ours) if not word.startswith("server.") else word
        changed.append(word)
    if changed[:2] == ["sightline", "run"]:
        changed = [ROOT / word if word.startswith("recipes/") else word for word in changed]
        given = {str(word).partition("=")[0] for word in changed}
        changed += [word for key, value in SMALL.items() if key not in given for word in ("--set", f"{key}={value}")]
    if changed[:3] == ["sightline", "eval", "run"]:
        changed += ["--limit", "8", "--max-tokens", "32"]
    return [str(word) for word in changed]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a reader's directory with the pictures and the file of pairs that listings name."""
    for name in ("photo.jpg", "cat.jpg", "shapes.png"):
        (tmp_path / name).write_bytes(encoded(picture(64, 64, 1)))
    things = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
    rows = [{"image": "photo.jpg", "texts": [f"{one} and {another} ."]} for one in things for another in things[:3]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def run(words: list[str], directory: Path, seconds: float = 800) -> str:
    """The command's output, run in a separate process."""
    program = {"sightline": [sys.executable, "-m", "sightline_cli"], "python": [sys.executable]}[words[0]]
    done = subprocess.run([*program, *words[1:]], cwd=directory, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def here(words: list[str]) -> str:
    """The command's output, run in this process."""
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output[-3000:]}"
    return result.output


@pytest.mark.parametrize("command", CHEAP, ids=lambda command: command.id)
def test_documented_commands_of_seconds_run(
    command: Documented, services: Services, playground: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = small(command.words(), services, playground)
    if {"score", "sample"} & set(words[:2]):  # a command without an address starts its own service
        where = services.scorer if words[1] == "score" else services.sampler
        words += [] if where in words else ["--scorer" if words[1] == "score" else "--sampler", where]
    if words[0] == "python":
        run([word if not word.isdigit() or int(word) < 9 else "8" for word in words], desk)
        assert list(desk.glob("*/prompts.jsonl"))
        return
    if "tests/fixtures" in command.text or "recipes/" in command.text:
        monkeypatch.chdir(ROOT)
    if "calibrate" in words:
        words += ["--out", "calibration.json"]
    assert here(words)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", [*OWN, *HEADERS], ids=lambda each: each.id)
def test_documented_commands_that_train_run(
    command: Documented, services: Services, playground: Path, desk: Path
) -> None:
    """A policy is trained, arrives and is evaluated; with `--check` the run is only tried."""
    words = small(command.words(), services, playground)
    for name, address in (("sampler", services.sampler), ("scorer", services.scorer)):
        words += [] if f"--{name}" in words else [f"--{name}", address]
    if "--check" in words:
        assert "the run can start" in run(words, desk)
        return
    words += [] if "--run" in words else ["--run", "runs/own"]
    run(words, desk)
    (root,) = (desk / "runs").iterdir()
    assert [row["iteration"] for row in json.loads((root / "metrics.json").read_text())] == [0, 1]
    assert json.loads((root / "policies/v000001/arrival.json").read_text())["passed"]


@pytest.fixture(scope="module")
def trained(services: Services, playground: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one iteration."""
    directory = tmp_path_factory.mktemp("trained")
    words = small(["sightline", "run", "recipes/clip_dpo.yaml"], services, playground)
    words += ["--set", f"data.train={playground}/train", "--set", f"data.test={playground}/test"]
    run([*words, "--run", "run", "--sampler", services.sampler, "--scorer", services.scorer], directory)
    return directory / "run"


@pytest.mark.slow
@pytest.mark.parametrize("command", AFTER, ids=lambda command: command.id)
def test_documented_commands_on_a_run_run(command: Documented, trained: Path, desk: Path) -> None:
    words = [word.replace("RUN", "runs/one").replace("DIR", "merged") for word in command.words()]
    words = ["1" if word in ("3", "VERSION") else word for word in words]
    for name in {word for word in words if word.startswith("runs/")}:
        shutil.copytree(trained, desk / name)
    assert here(words)


@pytest.mark.slow
def test_documented_commands_on_answers_run(services: Services, playground: Path, desk: Path) -> None:
    for command in EVALUATED:
        if "compare" in command.text:
            shutil.copy("base.json", "tuned.json")
        words = small(command.words(), services, playground)
        assert run(words, desk)
    assert json.loads((desk / "base.json").read_text())["metrics"]


@pytest.mark.slow
def test_documented_commands_of_a_repository_run(services: Services, playground: Path, desk: Path) -> None:
    (command,) = REPOSITORY
    run(small(command.words(), services, playground), desk)
    assert list(desk.glob("OUT/*/config.pbtxt"))


def serving(command: Documented, services: Services, playground: Path, extra: list[str]) -> tuple[str, list[str]]:
    """The service that a command starts, and its settings."""
    words = small(command.words(), services, playground)
    settings = [word for word in words[3:] if word != "--set" and not word.startswith("server.port=")]
    return words[2], [*settings, *extra]


@pytest.fixture
def started(desk: Path) -> Iterator[Processes]:
    with Processes(desk / "services") as processes:
        yield processes


@pytest.mark.slow
@pytest.mark.parametrize("command", SERVE, ids=lambda command: command.id)
def test_documented_commands_that_serve_run(
    command: Documented, services: Services, playground: Path, started: Processes
) -> None:
    service, settings = serving(command, services, playground, [])
    settings = [word for word in settings if not word.startswith(("http.port", "triton.port"))]
    if "triton.mode=remote" in settings:
        pytest.skip("the Triton of the command before it")
    if service == "scorer-http":
        gateway = Gateway(started.directory, services.scorer, *(word for word in settings if "target" not in word))
        assert gateway.stop() == 0
        return
    started.start(service, settings)
    assert started.wait(service, seconds=240).health


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_documented_commands_of_a_trainer_run(
    services: Services, playground: Path, started: Processes, desk: Path
) -> None:
    (serve,) = of("sightline serve trainer")
    _, settings = serving(serve, services, playground, [])
    started.start("trainer", settings)
    address = started.wait("trainer").grpc
    start, *others = RUNS
    words = [word.replace("HOST:50053", address) for word in small(start.words(), services, playground)]
    words += [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    assert here(words)
    name = next((desk / "runs").iterdir()).name
    assert [each.words()[2] for each in others] == ["list", "watch", "stop"]
    for each in others:
        assert here([word.replace("HOST:50053", address).replace("RUN", name) for word in each.words()])
