"""axe: findings of Deque's accessibility engine on the page that a browser shows."""

import importlib.util
import os
from pathlib import Path
from typing import Any

SERIOUS = ("serious", "critical")


def engine() -> str:
    """The engine's script, from the file $AXE_CORE (a newer axe.min.js) or from the package axe-core-python."""
    if named := os.environ.get("AXE_CORE"):
        return Path(named).read_text()
    found = importlib.util.find_spec("axe_core_python")
    assert found is not None
    assert found.submodule_search_locations is not None
    return (Path(next(iter(found.submodule_search_locations))) / "axe.min.js").read_text()


def findings(driver: Any, script: str) -> list[str]:
    """Serious and critical findings, each with its rule and elements."""
    driver.set_script_timeout(60)
    driver.execute_script(script)
    result = driver.execute_async_script(
        "const done = arguments[0];"
        "axe.run(document, {resultTypes: ['violations']}).then(done, (e) => done({error: String(e)}))"
    )
    assert "error" not in result, result
    told = []
    for found in result["violations"]:
        if found["impact"] in SERIOUS:
            nodes = found["nodes"]
            where = ", ".join(str(target) for node in nodes[:4] for target in node["target"])
            told.append(f"{found['id']} ({found['impact']}, {len(nodes)}): {where}: {nodes[0]['failureSummary'][:200]}")
    return told
