"""Screenshots of a run's report in headless Chromium: two widths, light and dark.

    python tools/screenshots.py runs/demo --out docs/images

Needs Debian's chromium and chromium-driver. Fails where the page logs an error to the console.
"""

from __future__ import annotations

import argparse
import sys
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
    """Chromium with a window of that size, which keeps what pages write to the console."""
    options = Options()
    for flag in (*FLAGS, f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        # A window has a least width of its own; a phone has not.
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        yield driver
    finally:
        driver.quit()


def shoot(page: Path, out: Path) -> list[Path]:
    """Pictures of the page's top and of its gallery, at each size, light and dark.

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


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="default: %(default)s")
    options = parser.parse_args()
    from sightline_cli.report import write

    options.out.mkdir(parents=True, exist_ok=True)
    for path in shoot(write([options.run]), options.out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
