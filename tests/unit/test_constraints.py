"""The pinned versions, which every set-up of the repository takes."""

from __future__ import annotations

from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from running import ROOT


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}


@pytest.mark.field
@pytest.mark.parametrize("python", ["3.11.2", "3.12.3", "3.13.0"])
def test_each_pinned_version_runs_on_the_pythons_of_distributions(python: str) -> None:
    """Debian 12 has Python 3.11.2, and a package of the documentation's wanted 3.11.5: `make` ended at once."""
    versions = pinned()
    looked_at = [
        found
        for found in metadata.distributions()
        if versions.get(canonicalize_name(found.metadata["Name"])) == found.version
    ]
    assert len(looked_at) > len(versions) / 2, "this environment was not made with constraints.txt"
    refused = {
        found.metadata["Name"]: wants
        for found in looked_at
        if (wants := found.metadata["Requires-Python"]) and not SpecifierSet(wants).contains(python)
    }
    assert refused == {}
