"""A pytest plugin that resumes an interrupted run: it records passed tests and skips them the next time.

PASSED_TESTS=FILE python -m pytest -p passed_tests ...    (tools on PYTHONPATH; with pytest-xdist too)
"""

import os
from pathlib import Path
from typing import Any

import pytest

FILE = Path(os.environ["PASSED_TESTS"])


class Passed:
    """Tests that passed before this run or in it."""

    def __init__(self, config: pytest.Config) -> None:
        worker = getattr(config, "workerinput", None)
        self.before = set(_lines() if worker is None else worker["passed"])
        self.writes = worker is None
        self.bad: set[str] = set()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        done = [item for item in items if item.nodeid in self.before]
        if done:
            items[:] = [item for item in items if item.nodeid not in self.before]
            config.hook.pytest_deselected(items=done)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.bad.add(report.nodeid)
        if self.writes and report.when == "teardown" and report.nodeid not in self.bad:
            with FILE.open("a", encoding="utf-8") as file:
                file.write(f"{report.nodeid}\n")

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Deselect the same tests in all workers, whenever they start."""
        node.workerinput["passed"] = sorted(self.before)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.before:
            session.exitstatus = pytest.ExitCode.OK  # all of them had passed


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Passed(config), "passed-tests")


def _lines() -> list[str]:
    return FILE.read_text(encoding="utf-8").splitlines() if FILE.exists() else []
