"""Dashboards: every panel's query parses and uses only metrics that the services export."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from monitoring import DASHBOARDS, FILES, FOREIGN, exported, families, metrics_of, panels, plain, recorded
from running import ROOT

QUERIES = list(panels())


def test_every_query_parses_and_names_known_metrics() -> None:
    known = exported() | recorded() | {"up"}
    assert len(QUERIES) > 60
    for dashboard, title, query in QUERIES:
        for name in metrics_of(plain(query)):
            assert name in known or name.startswith(FOREIGN), (dashboard, title, name)


def test_rates_follow_the_scrape_and_every_selector_the_variables() -> None:
    for dashboard, title, query in QUERIES:
        for selector in re.findall(r"[a-z_:]+\{[^}]*\}", query):
            assert 'namespace=~"$namespace"' in selector, (dashboard, title)
            assert 'release=~"$release"' in selector, (dashboard, title)
        for window in re.findall(r"\brate\([^[]*\[([^]]*)\]", query):
            assert window == "$__rate_interval", (dashboard, title)
        for name in metrics_of(plain(query)):
            if name.endswith("_bucket"):
                assert "rate(" in query or "increase(" in query, (dashboard, title)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_provisioned(path: Path) -> None:
    board: dict[str, Any] = json.loads(path.read_text())
    assert board["uid"] == f"sightline-{path.stem}"
    assert board["editable"] is False
    assert "id" not in board
    variables = {variable["name"]: variable["type"] for variable in board["templating"]["list"]}
    assert variables == {"datasource": "datasource", "namespace": "query", "release": "query"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    places: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & places, panel["title"]
        places |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
            assert panel["fieldConfig"]["defaults"]["unit"]
    titles = [panel["title"] for panel in board["panels"]]
    assert len(titles) == len(set(titles))


def test_uids_are_one_each() -> None:
    assert len(DASHBOARDS) == 4
    assert len({json.loads(path.read_text())["uid"] for path in DASHBOARDS}) == 4


@pytest.mark.field
def test_every_panel_says_what_it_means_and_when_to_worry() -> None:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            if panel["type"] != "row":
                meaning = panel.get("description", "")
                assert len(meaning) > 40, (path.stem, panel["title"])
                assert "orry" in meaning, (path.stem, panel["title"])
                assert meaning.endswith("."), (path.stem, panel["title"])


@pytest.mark.field
def test_the_kl_is_called_what_it_is_wherever_it_is_shown() -> None:
    """On the policy's own samples, by k3; not a mean log-ratio of other texts, which is often negative."""
    (title,) = {title for _, title, query in QUERIES if "sightline_trainer_kl{" in query}
    assert title == "KL from the base model"
    kind, meaning = families()["sightline_trainer_kl"]
    assert kind == "gauge"
    for words in ("own held-out samples", "k3"):
        assert words in meaning
        assert words in (ROOT / "docs/monitoring.md").read_text()
        assert words in (FILES / "dashboards/trainer.json").read_text()
    for path in ("docs/monitoring.md", "docs/evaluation.md", "services/trainer/README.md"):
        assert "kl_to_reference" not in (ROOT / path).read_text()
