"""docs/monitoring.md lists every metric that the services export, with its type, and no other."""

import re

from monitoring import families
from running import ROOT


def test_the_table_is_what_the_services_export() -> None:
    text = (ROOT / "docs/monitoring.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE))
    assert listed == {name: kind for name, (kind, _) in families().items()}


def test_names_follow_the_conventions() -> None:
    for name, (kind, meaning) in families().items():
        assert re.fullmatch(r"(sightline|grpc)_[a-z0-9_]+", name)
        assert name.endswith("_total") == (kind == "counter"), name
        assert meaning.endswith("."), name
        if kind == "histogram":
            assert not name.endswith(("_count", "_sum", "_bucket")), name
