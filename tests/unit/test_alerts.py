"""Alert rules: they are valid, each is tested to fire and to stay silent, and each has a runbook."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml
from charts import render
from monitoring import ALERTS, FOREIGN, exported, metrics_of, recorded, rules, runbooks
from running import ROOT

CASES = sorted((ROOT / "tests/alerts").glob("*.yaml"))
EXTERNAL = ("up",)

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def _run(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_takes_the_rules() -> None:
    _run("check", "rules", *map(str, ALERTS))


@needs_promtool
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_each_alert_fires_and_stays_silent_when_it_should(case: Path) -> None:
    _run("test", "rules", str(case))


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    fires, silent = Counter[str](), Counter[str]()
    for path in CASES:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                (fires if case["exp_alerts"] else silent)[case["alertname"]] += 1
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert len(alerts) > 30
    assert set(fires) == alerts
    assert set(silent) == alerts


def test_every_alert_says_how_bad_it_is_what_it_is_and_what_to_do() -> None:
    names = Counter(rule["alert"] for rule in rules() if "alert" in rule)
    assert not [name for name, count in names.items() if count > 1]
    for rule in rules():
        if "alert" in rule:
            assert re.fullmatch(r"Sightline[A-Z]\w+", rule["alert"])
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"].endswith(".")
            assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{rule['alert'].lower()}"
            assert rule["alert"].lower() in runbooks()


def test_rules_use_only_what_the_services_export() -> None:
    known = exported() | recorded() | set(EXTERNAL)
    for rule in rules():
        for name in metrics_of(rule["expr"]):
            assert name in known or name.startswith(FOREIGN), (rule.get("alert") or rule["record"], name)


@needs_promtool
@pytest.mark.slow
def test_the_charts_rules_are_of_their_own_release(tmp_path: Path) -> None:
    """All cases, which are of release s in namespace ml, by the rules of s, and by those of another one: these stay
    silent, so that two releases do not alert twice."""
    for name in ("s", "other"):
        objects = render({"monitoring": {"rules": {"enabled": True}}}, name=name, namespace="ml")
        for item in objects:
            if item["kind"] == "PrometheusRule":
                file = item["metadata"]["name"].removeprefix(f"{name}-sightline-").removesuffix("-rules")
                (tmp_path / f"{name}-{file}.yaml").write_text(yaml.safe_dump(item["spec"]))
        cases = []
        for path in CASES:
            tree = yaml.safe_load(path.read_text())
            tree["rule_files"] = [f"{name}-{Path(file).name}" for file in tree["rule_files"]]
            for case in (case for test in tree["tests"] for case in test["alert_rule_test"]):
                if name == "other" and path.stem != "nodes":  # a GPU is known by its namespace alone
                    case["exp_alerts"] = []
            cases.append(tmp_path / f"{name}-case-{path.name}")
            cases[-1].write_text(yaml.safe_dump(tree))
        _run("test", "rules", *map(str, cases))
