"""Artefacts made with another picture rule, as by Sightline 0.1.0, are read or refused in one sentence."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from sightline.errors import PreconditionFailed
from sightline.picture_rule import PICTURE_RULE
from sightline.sampler import PolicyManifest, policy_dirname, read_manifest, verify, write_manifest
from sightline_cli.policy_files import show_one
from sightline_sampler.policies.staging import announced
from sightline_scorer import calibration
from sightline_trainer.allowed import Allowed
from sightline_trainer.execute import execute
from sightline_trainer.report.history import History
from sightline_trainer.report.page import page
from sightline_trainer.run_queue import RunQueue
from sightline_trainer.runs import RunDirectory

OLD = Path(__file__).parents[1] / "fixtures/v0_1_0"
BASE = "0" * 64


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "run", tmp_path / "runs" / "demo"))


def test_a_manifest_names_the_rule(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("weights")
    write_manifest(tmp_path, PolicyManifest(1, 0, "lora", BASE))
    assert json.loads((tmp_path / "manifest.json").read_text())["picture_rule"] == PICTURE_RULE
    assert announced(tmp_path)[0].picture_rule == PICTURE_RULE


def test_an_old_policy_is_read_and_not_served(old_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = old_run / "policies" / policy_dirname(1)
    assert verify(policy) == read_manifest(policy)
    assert read_manifest(policy).picture_rule == ""
    show_one(old_run, 1, False)
    assert "picture rule not named (Sightline 0.1.0)" in capsys.readouterr().out
    with pytest.raises(
        PreconditionFailed, match=r"no named rule, as by Sightline 0\.1\.0.*train it again, or serve it"
    ) as e:
        announced(policy)
    assert e.value.reason == "PICTURE_RULE_DIFFERS"


def test_a_policy_of_another_rule_is_not_served(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("weights")
    write_manifest(tmp_path, PolicyManifest(1, 0, "lora", BASE, picture_rule="7"))
    with pytest.raises(PreconditionFailed, match=r"read by rule 7, but this sampler reads them by rule 1"):
        announced(tmp_path)


def test_an_old_run_is_reported_and_not_gone_on_with(old_run: Path) -> None:
    history, before = History.read(old_run), (old_run / "run.json").read_text()
    assert [entry.manifest.version for entry in history.policies] == [1]
    assert "clip_dpo" in page([history])
    run = RunDirectory(old_run)
    recipe = run.recipe()
    assert recipe is not None
    assert recipe is not None
    with pytest.raises(PreconditionFailed, match="finish it with the release that started it, or start a new run") as e:
        execute(recipe, run, lambda event: None)
    assert e.value.reason == "PICTURE_RULE_DIFFERS"
    assert (old_run / "run.json").read_text() == before


def test_an_old_run_that_was_queued_fails_and_says_why(old_run: Path) -> None:
    run = RunDirectory(old_run)
    run.set_state("queued")
    recipe = run.recipe()
    addresses = [address for address in (recipe.sampling.address, recipe.reward.address) if address]
    queue = RunQueue(old_run.parent, allowed=Allowed(addresses=addresses, data_roots=[Path("/")]))
    queue.start()
    try:
        for _ in range(3000):
            if run.state()["state"] == "failed":
                break
            asyncio.run(asyncio.sleep(0.01))
        assert (run.state()["state"], run.state()["reason"]) == ("failed", "PICTURE_RULE_DIFFERS")
        with pytest.raises(PreconditionFailed, match=r"no named rule to read a picture, as by Sightline 0\.1\.0"):
            queue.go_on("demo")
    finally:
        queue.close()


def test_a_run_names_the_rule_from_its_beginning(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.set_state("queued")
    assert run.state()["picture_rule"] == PICTURE_RULE
    (run.root / "iterations").mkdir()
    run.set_state("running")
    assert run.state()["picture_rule"] == PICTURE_RULE


def test_an_old_calibration_is_read_with_no_rule() -> None:
    assert calibration.read(OLD / "calibration.json").picture_rule == ""
    fitted = calibration.fit([n / 100 for n in range(50)], "w", "p")
    assert json.loads(fitted.to_json())["picture_rule"] == PICTURE_RULE
