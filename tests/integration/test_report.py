"""The report of a real run: whole, self-contained, and working in a real browser."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import axe
import pytest
import yaml
from running import ROOT, Services, small_recipe
from sightline.errors import NotFound, SightlineError
from sightline_cli.main import app
from sightline_cli.watch import follow
from sightline_trainer.display import Display
from sightline_trainer.execute import execute
from sightline_trainer.recipe import Recipe
from sightline_trainer.report.history import History
from sightline_trainer.report.page import page
from sightline_trainer.runs import RunDirectory
from typer.testing import CliRunner

sys.path.insert(0, str(ROOT / "tools"))


@pytest.fixture(scope="module")
def run(services: Services, playground: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two short iterations."""
    directory = tmp_path_factory.mktemp("runs") / "short"
    recipe = Recipe.model_validate(small_recipe(services, playground))
    with Display(recipe.iterations) as display:
        execute(recipe, RunDirectory(directory), display)
    return directory


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return page([History.read(run)])


def test_history_is_what_the_files_say(run: Path) -> None:
    history = History.read(run)
    assert [row["policy_version"] for row in history.rows] == [0, *[p.manifest.version for p in history.policies]]
    assert set(history.seconds[1]) == {"sample", "pair", "update", "publish", "evaluate"}
    assert history.counts[1]["pairs"] > 0
    last = history.policies[-1].manifest
    assert [policy.manifest.version for policy in reversed(history.policies)] == [last.version, last.parent_version]
    assert history.state["versions"]["trl"].startswith("1.16")


@pytest.mark.field
def test_the_kl_is_0_for_the_base_model_and_above_0_for_what_was_trained(run: Path) -> None:
    import pyarrow.parquet as pq

    history = History.read(run)
    assert history.rows[0]["kl_to_base"] == 0.0
    for row in history.rows[1:]:
        captions = pq.read_table(run / f"iterations/{int(row['iteration']):04d}/captions.parquet")
        each = captions["kl_to_base"].to_pylist()
        assert min(each) >= 0.0
        assert row["kl_to_base"] == pytest.approx(sum(each) / len(each))
        assert 0.0 < row["kl_to_base_low"] <= row["kl_to_base"] <= row["kl_to_base_high"]
    assert all("kl_to_reference" not in found for found in history.updates.values())


def test_the_page_asks_nobody_for_anything(html: str) -> None:
    outside = re.findall(r"""(?:src|href|action)\s*=\s*["']?(?!data:|#)([^"'> ]+)""", html)
    assert outside == []
    assert "connect-src 'none'" in html
    assert "url(" not in re.sub(r"url\(#[^)]*\)", "", html), "only references within the page"


def test_the_page_shows_what_the_run_holds(html: str, run: Path) -> None:
    history = History.read(run)
    for row in history.rows:
        assert f"{row['chair_s']:.3f}" in html
    for policy in history.policies:
        assert policy.digest[:16] in html
    assert html.count('class="card"') == 24 + 24, "all held-out and all training pictures"
    assert html.count("<svg ") >= 9
    assert "<ins>" in html
    assert "<del>" in html
    assert "<mark>" in html, "the playground's truth marks what is not in the picture"


def test_texts_of_a_model_are_no_markup(run: Path, tmp_path: Path) -> None:
    import shutil

    import pyarrow as pa
    import pyarrow.parquet as pq

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for path in copy.glob("iterations/*/captions.parquet"):
        rows = pq.read_table(path).to_pylist()
        rows[0]["text"] = "<script>alert(1)</script> a red star & more"
        pq.write_table(pa.Table.from_pylist(rows), path)
    made = page([History.read(copy)])
    assert "<script>alert" not in made
    assert "&lt;script&gt;alert(1)" in made


def test_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.html"
    done = CliRunner().invoke(app, ["report", str(run), str(run), "--out", str(out)])
    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert "Side by side" in text
    assert text.count("<svg ") >= 5


def test_the_command_writes_into_the_run(run: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(run), "--pictures", "0", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"report": str(run / "report.html")}
    assert (run / "report.html").exists()
    missing = CliRunner().invoke(app, ["report", str(run / "nowhere")])
    assert missing.exit_code == 2
    assert "no run at" in missing.stderr


def test_a_run_that_has_just_begun_has_a_page(run: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    assert "Nothing has been measured yet" in page([History.read(begun)])
    with pytest.raises(NotFound):
        History.read(tmp_path / "nothing")


def test_watching_ends_with_the_run(run: Path) -> None:
    stages = [event.stage for event in follow(RunDirectory(run))]
    assert stages[0] == "start"
    assert stages[-1] == "end"
    done = CliRunner().invoke(app, ["watch", str(run)])
    assert done.exit_code == 0, done.output
    assert "succeeded" in done.output
    lines = CliRunner().invoke(app, ["watch", str(run), "--json"]).stdout.splitlines()
    assert [json.loads(line)["stage"] for line in lines] == stages


def test_policies_of_a_run(run: Path, tmp_path: Path) -> None:
    import shutil

    listed = CliRunner().invoke(app, ["policies", "list", str(run), "--json"])
    versions = [one["version"] for one in json.loads(listed.stdout)]
    shown = CliRunner().invoke(app, ["policies", "show", str(run), str(versions[-1]), "--json"])
    assert json.loads(shown.stdout)["lineage"] == [*reversed(versions), 0]
    assert CliRunner().invoke(app, ["policies", "verify", str(run)]).exit_code == 0

    copy = tmp_path / "policies"
    shutil.copytree(run / "policies", copy)
    weights = next(copy.glob("*/adapter_model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    damaged = CliRunner().invoke(app, ["policies", "verify", str(copy), "--json"])
    assert damaged.exit_code == 1
    assert [one["ok"] for one in json.loads(damaged.stdout)].count(False) == 1
    assert weights.parent.name in damaged.stderr


def test_an_export_is_a_dataset_that_trl_takes_as_it_is(run: Path, tmp_path: Path) -> None:
    import datasets
    import torch
    from running import WEIGHTS
    from transformers import AutoProcessor, LlavaForConditionalGeneration
    from trl import DPOConfig, DPOTrainer

    done = CliRunner().invoke(app, ["export", str(run), "--to", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    pairs = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert len(pairs) == sum(found["pairs"] for found in History.read(run).counts.values())
    assert yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())["name"] == "small"
    torch.set_num_threads(1)
    trainer = DPOTrainer(
        model=LlavaForConditionalGeneration.from_pretrained(WEIGHTS / "llava"),
        processing_class=AutoProcessor.from_pretrained(WEIGHTS / "llava"),
        train_dataset=pairs.select(range(4)),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"), max_steps=1, per_device_train_batch_size=2, max_length=None,
            report_to=[], use_cpu=True, save_strategy="no", bf16=False,
        ),
    )  # fmt: skip
    assert trainer.train().training_loss == pytest.approx(0.693, abs=0.01)  # the reference is the model itself
    again = CliRunner().invoke(app, ["export", str(run), "--to", str(tmp_path / "out")])
    assert again.exit_code == 2
    assert "already exists" in again.stderr


@pytest.fixture(scope="module")
def screenshots() -> Any:
    if not Path("/usr/bin/chromedriver").exists():
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    import screenshots

    return screenshots


def test_in_a_browser_the_galleries_page_and_filter(screenshots: Any, run: Path, html: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html)
    with screenshots.browser(1280, 1000) as driver:
        driver.get(file.as_uri())

        def shown() -> int:
            cards = driver.find_elements("css selector", "[data-gallery]:first-of-type .card")
            return sum(card.is_displayed() for card in cards[:24])

        gallery = driver.find_element("css selector", "[data-gallery]")
        assert shown() == 12
        gallery.find_element("css selector", "[data-page=next]").click()
        assert "page 2 of 2" in gallery.find_element("css selector", "output").text
        better = len(gallery.find_elements("css selector", ".card[data-kind=better]"))
        gallery.find_element("css selector", "[data-filter=better]").click()
        assert gallery.find_element("css selector", "output").text.startswith(f"{better} of 24")
        gallery.find_element("css selector", "input").send_keys("no text says this")
        assert shown() == 0
        dark = "return getComputedStyle(document.body).backgroundColor"
        before = driver.execute_script(dark)
        driver.find_element("id", "theme").click()
        assert driver.execute_script(dark) != before
        assert driver.get_log("browser") == []


def test_screenshots_at_two_widths(screenshots: Any, run: Path, html: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html)
    written = screenshots.shoot(file, tmp_path)
    assert len(written) == 8
    with screenshots.browser(400, 860) as driver:
        driver.get(file.as_uri())
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 400, "nothing sticks out"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_nothing_serious(screenshots: Any, html: str, tmp_path: Path, width: int) -> None:
    file = tmp_path / "report.html"
    file.write_text(html)
    script = axe.engine()
    with screenshots.browser(width, 900) as driver:
        driver.get(file.as_uri())
        driver.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        for theme in ("light", "dark"):
            driver.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
            assert axe.findings(driver, script) == [], theme


def test_errors_are_typed(run: Path) -> None:
    with pytest.raises(SightlineError):
        History.read(run / "iterations")
