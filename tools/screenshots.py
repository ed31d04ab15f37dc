"""Screenshots of a run's report, and of the console, in headless Chromium: two widths, light and dark.

    python tools/screenshots.py runs/demo --out docs/images
    python tools/screenshots.py runs/demo --console --out docs/images     the console of runs/, with that run

Needs Debian's chromium and chromium-driver. Fails if the page logs an error to the browser's console.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
SIZES = {"desktop": (1280, 1000), "phone": (400, 860)}


@contextmanager
def browser(width: int, height: int) -> Iterator[Chrome]:
    """Chromium with a window of that size, which records the pages' console output."""
    options = Options()
    for flag in (*FLAGS, f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        # A window has a minimum width; a phone does not.
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        yield driver
    finally:
        driver.quit()


def shoot(page: Path, out: Path) -> list[Path]:
    """Take pictures of the page's top and of its gallery, at each size, light and dark.

    Raises:
        RuntimeError: the page wrote to the console.
    """
    written = []
    for name, (width, height) in SIZES.items():
        with browser(width, height) as driver:
            driver.get(page.resolve().as_uri())
            for theme in ("light", "dark"):
                driver.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
                for part, place in (("top", "header"), ("gallery", "[data-gallery]")):
                    driver.execute_script("document.querySelector(arguments[0])?.scrollIntoView()", place)
                    path = out / f"report-{name}-{theme}-{part}.png"
                    driver.save_screenshot(str(path))
                    written.append(path)
            if log := driver.get_log("browser"):
                raise RuntimeError(f"{page} wrote to the console: {log}")
    return written


def shoot_console(url: str, run: str, out: Path) -> list[Path]:
    """Take pictures of the console's pages: the wide size in light, the narrow one in dark.

    Raises:
        RuntimeError: a page wrote to the browser's console, did not load, or is wider than its window.
    """
    pages = {"runs": ("#/", "#runs tr"), "new": ("#/new", ".field"), "run": (f"#/run/{run}", "#gallery .card")}
    written = []
    for name, theme in (("desktop", "light"), ("phone", "dark")):
        with browser(*SIZES[name]) as driver:
            for page, (place, there) in pages.items():
                driver.get(f"{url}{place}")
                driver.refresh()
                end = time.monotonic() + 60
                while not driver.execute_script("return document.querySelector(arguments[0])", there):
                    if time.monotonic() > end:
                        raise RuntimeError(f"{place} did not come")
                    time.sleep(0.2)
                time.sleep(1)
                driver.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
                if driver.execute_script("return document.documentElement.scrollWidth > innerWidth"):
                    raise RuntimeError(f"{place} is wider than a {name}")
                path = out / f"console-{name}-{theme}-{page}.png"
                driver.save_screenshot(str(path))
                written.append(path)
                if log := driver.get_log("browser"):
                    raise RuntimeError(f"{place} wrote to the console: {log}")
    return written


@contextmanager
def console_of(directory: Path) -> Iterator[str]:
    """`sightline ui` of a directory of runs; its address."""
    command = [sys.executable, "-m", "sightline_cli", "ui", str(directory), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[0]
        for _ in range(300):
            try:
                urllib.request.urlopen(url.replace("/?", "/api/runs?")).read()
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="default: %(default)s")
    parser.add_argument("--console", action="store_true", help="take the console's pages instead of the report's")
    options = parser.parse_args()
    from sightline_cli.report import write

    options.out.mkdir(parents=True, exist_ok=True)
    if options.console:
        with console_of(options.run.resolve().parent) as url:
            for path in shoot_console(url, options.run.resolve().name, options.out):
                print(path)
        return 0
    for path in shoot(write([options.run]), options.out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
