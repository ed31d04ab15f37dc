"""`sightline sample`: against a running sampler, and with one that it starts itself."""

import io
import json
from pathlib import Path

import pytest
from running import ROOT, WEIGHTS, Services
from sightline.sampler import SamplerClient
from sightline_cli.main import app
from sightline_playground.drawing import draw
from sightline_playground.scenes import scenes
from typer.testing import CliRunner

PROMPT = "Describe the image."


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "scene.png"
    out = io.BytesIO()
    draw(next(iter(scenes("validation", 1, seed=9)))).save(out, "PNG")
    path.write_bytes(out.getvalue())
    return path


def test_the_table_shows_what_the_sampler_says(services: Services, picture: Path) -> None:
    command = ["sample", str(picture), PROMPT, "-n", "3", "--seed", "5", "--sampler", services.sampler]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    assert result.exit_code == 0, result.output
    with SamplerClient(services.sampler) as client:
        samples = client.sample(picture, PROMPT, 3, seed=5)
    for candidate in samples.candidates:
        row = next(line for line in result.output.splitlines() if str(candidate.seed) in line)
        index, tokens, mean, seed, version, finish, text = row.split(maxsplit=6)
        assert (index, tokens, seed) == (str(candidate.index), str(len(candidate.token_ids)), str(candidate.seed))
        assert (mean, version) == (f"{candidate.logprobs.mean():.3f}", f"v{candidate.policy_version}")
        assert finish == candidate.finish_reason
        assert candidate.text.startswith(text.strip())


def test_json_holds_tokens_and_options_are_passed_on(services: Services, picture: Path) -> None:
    def said(*options: str) -> list[dict[str, object]]:
        command = ["sample", str(picture), PROMPT, "-n", "2", "--json", "--sampler", services.sampler, *options]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.output.splitlines()]

    first, second = said("--temperature", "0", "--max-tokens", "2")
    assert first["token_ids"] == second["token_ids"]
    assert len(first["token_ids"]) == len(first["logprobs"]) == 2  # type: ignore[arg-type]
    with SamplerClient(services.sampler) as client:
        version = client.policies().active.version  # other tests publish to it too
    assert (first["finish_reason"], first["policy_version"], second["index"]) == ("length", version, 1)
    plain, noisy = said("--top-p", "0.9"), said("--top-p", "0.9", "--noise", "999")
    assert [c["logprobs"] for c in plain] != [c["logprobs"] for c in noisy]
    two = said("--also", str(picture), "--system", "there is a star .")
    with SamplerClient(services.sampler) as client:
        asked = [{"role": "system", "content": "there is a star ."}, {"role": "user", "content": PROMPT}]
        samples = client.sample([picture, picture], asked, 2)
    assert [c["token_ids"] for c in two] == [c.token_ids.tolist() for c in samples.candidates]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["no-such-file.png", PROMPT], "there is no image no-such-file.png"),
        (["PICTURE", PROMPT, "--sampler", "x:1", "--model", "y"], "not both"),
        (["PICTURE", PROMPT, "--noise", "1000", "--sampler", "SAMPLER"], "0..999"),
        (["PICTURE", PROMPT, "-n", "0", "--sampler", "SAMPLER"], "num_candidates is 0"),
    ],
)
def test_a_mistake_is_one_line(services: Services, picture: Path, options: list[str], names: str) -> None:
    real = {"PICTURE": str(picture), "SAMPLER": services.sampler}
    result = CliRunner().invoke(app, ["sample", *(real.get(option, option) for option in options)])
    assert result.exit_code == 2
    assert names in result.output
    assert "Traceback" not in result.output


def test_without_an_address_it_starts_the_playgrounds_model(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["sample", str(picture), PROMPT, "-n", "2"])
    assert result.exit_code == 0, result.output
    assert result.output.count(" v0 ") == 2
    assert (WEIGHTS / "llava").samefile("playground/weights/llava")
