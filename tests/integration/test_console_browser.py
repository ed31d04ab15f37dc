"""The console in a real browser: start a run by the form, watch it, stop it, resume it, compare it."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import axe
import pytest
from running import ROOT

sys.path.insert(0, str(ROOT / "tools"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/usr/bin/chromedriver").exists(), reason="no chromedriver"),
]
SMALL = {
    "iterations": "1",
    "data.train": "playground:align?count=96&seed=1",
    "data.test": "playground:test?count=48&seed=2",
    "data.prompts_per_iteration": "96",
}
WIDTHS = {"desktop": (1280, 1000), "phone": (400, 860)}


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    root = tmp_path_factory.mktemp("console")
    command = [sys.executable, "-m", "sightline_cli", "ui", str(root / "runs"), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found is not None
    yield found[0], root / "runs"
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def script() -> str:
    return axe.engine()


@pytest.fixture(scope="module", params=["desktop"])
def driver(request: pytest.FixtureRequest) -> Iterator[Any]:
    from screenshots import browser

    with browser(*WIDTHS[request.param]) as driver:
        yield driver


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds} s")


def text(driver: Any, place: str) -> str:
    return str(driver.execute_script("return document.querySelector(arguments[0])?.textContent || ''", place))


@pytest.mark.timeout(900)
def test_a_run_from_the_form_to_the_comparison(driver: Any, console: tuple[str, Path]) -> None:
    url, root = console
    driver.get(f"{url}#/new")
    until(lambda: text(driver, "#recipe"))
    driver.execute_script(
        "const s = document.getElementById('recipe'); s.value = 'clip_dpo'; s.dispatchEvent(new Event('change'))"
    )
    until(lambda: driver.execute_script("return document.getElementById('name').value").startswith("clip-dpo"))
    until(lambda: driver.execute_script("return document.querySelectorAll('[data-key]').length > 30"))
    for key, value in SMALL.items():
        driver.execute_script(
            "const i = document.getElementById('f-' + arguments[0]); i.value = arguments[1];"
            "i.dispatchEvent(new Event('input'))",
            key,
            value,
        )
    driver.execute_script("document.getElementById('name').value = 'mine'")
    assert driver.execute_script("return document.querySelectorAll('.field.changed').length") == len(SMALL)
    driver.execute_script("document.querySelector('form button[type=submit]').click()")
    until(lambda: driver.current_url.endswith("#/run/mine"))

    until(lambda: " of " in text(driver, "#line"), 240)  # it moves
    before = text(driver, "#line")
    until(lambda: text(driver, "#line") not in ("", before), 120)

    driver.execute_script("document.getElementById('toggle').click()")
    until(lambda: text(driver, "#state") == "stopped", 120)
    assert text(driver, "#toggle") == "Resume"
    driver.execute_script("document.getElementById('toggle').click()")
    until(lambda: text(driver, "#state") == "running", 120)
    until(lambda: text(driver, "#state") == "succeeded", 500)
    until(lambda: text(driver, "#verdict") and "Nothing to judge" not in text(driver, "#verdict"))
    until(lambda: driver.execute_script("return document.querySelectorAll('#gallery .card').length > 3"))
    assert "Update: loss by step" in text(driver, "#steps")

    shutil.copytree(root / "mine", root / "twin", ignore=shutil.ignore_patterns(".lease"))
    (root / "twin/recipe.yaml").write_text((root / "twin/recipe.yaml").read_text().replace("beta: 0.1", "beta: 0.3"))
    driver.get(f"{url}#/")
    until(lambda: "twin" in text(driver, "#runs"))
    for name in ("mine", "twin"):
        driver.execute_script("document.querySelector(`input[value=${arguments[0]}]`).click()", name)
    driver.execute_script(
        "[...document.querySelectorAll('main button')].find((b) => b.textContent.includes('Compare')).click()"
    )
    until(lambda: "dpo.beta" in text(driver, "#differences"))
    assert "within chance" in text(driver, "#changes")
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_its_window_and_axe_finds_nothing_serious(
    console: tuple[str, Path], width: str, script: str
) -> None:
    """In light and dark, at the width of a desktop and of a phone."""
    from screenshots import browser

    url, root = console
    pages = ["", "new"] + (["run/mine", "compare/mine/twin"] if (root / "twin").exists() else [])
    found: dict[str, list[str]] = {}
    with browser(*WIDTHS[width]) as driver:
        for page in pages:
            driver.get(f"{url}#/{page}")
            driver.refresh()
            until(lambda: driver.execute_script("return document.querySelectorAll('main *').length > 5"))
            time.sleep(1)
            for theme in ("light", "dark"):
                driver.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
                found[f"{page} {theme}"] = axe.findings(driver, script)
            assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth"), page
            assert driver.get_log("browser") == []
    assert {page: each for page, each in found.items() if each} == {}


def test_the_keyboard_alone_gets_everywhere(console: tuple[str, Path]) -> None:
    from screenshots import browser
    from selenium.webdriver.common.keys import Keys

    url, root = console
    with browser(*WIDTHS["desktop"]) as driver:
        driver.get(url)
        until(lambda: "Runs" in text(driver, "h1"))
        assert "token" not in driver.current_url, "it is in a cookie now"

        def press(*keys: str) -> None:
            for key in keys:
                driver.switch_to.active_element.send_keys(key)

        press("n")
        until(lambda: driver.current_url.endswith("#/new"))
        until(lambda: text(driver, "#recipe"))
        driver.execute_script("document.activeElement.blur()")
        driver.find_element("tag name", "body").send_keys("r")
        until(lambda: driver.current_url.endswith("#/"))
        if (root / "mine").exists():
            until(lambda: "mine" in text(driver, "#runs"))
            driver.find_element("tag name", "body").send_keys("j")
            press(Keys.ENTER)
            until(lambda: "#/run/" in driver.current_url)
        reached = set()
        for _ in range(12):
            press(Keys.TAB)
            reached.add(driver.execute_script("return document.activeElement.textContent.trim().slice(0, 20)"))
        assert len(reached) > 3
