"""List, show and verify a run's policies; list those that a sampler has loaded."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from sightline.errors import DataCorrupted, NotFound
from sightline.sampler import (
    ManifestError,
    PolicyManifest,
    SamplerClient,
    manifest_digest,
    policy_dirname,
    read_manifest,
    verify,
)
from sightline_trainer.display import draw, narrow

from sightline_cli.credentials import given


def directory_of(run: Path) -> Path:
    """The policies' directory of a run, or the directory itself if it holds policies.

    Raises:
        NotFound: there are no policies.
    """
    for candidate in (run / "policies", run):
        if any(candidate.glob("v[0-9]*")):
            return candidate
    if (run / "recipe.yaml").is_file():
        told = "this run has published none yet; version 0 is its base model"
    else:
        told = "name a run directory, or a directory of policies"
    raise NotFound(f"no policies at {run}: {told}", reason="NO_POLICIES")


def show_list(run: Path | None, sampler: str | None, as_json: bool) -> None:
    """A table of all policies, oldest first."""
    if sampler is not None:
        with SamplerClient(sampler, **given().of_client()) as client:
            loaded = client.policies()
        rows = [
            {"version": one.version, "state": one.state, "kind": one.kind, "parent": one.parent_version,
             "run": one.run_id, "iteration": one.iteration, "digest": one.digest}
            for one in loaded.policies
        ]  # fmt: skip
    else:
        directory = directory_of(run or Path("runs/demo"))
        rows = [_row(path) for path in sorted(directory.glob("v[0-9]*"))]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = narrow("")
    for name in ("version", "state", "kind", "parent", "run", "iteration", "digest"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        told = (row[name] for name in ("version", "state", "kind", "parent", "run", "iteration"))
        table.add_row(*(escape(str(each)) for each in told), str(row["digest"])[:12])
    draw(table, Console())


def show_one(run: Path, version: int, as_json: bool) -> None:
    """One policy's manifest, and its ancestors' versions."""
    directory = directory_of(run)
    manifest = _manifest(directory / policy_dirname(version))
    chain, at = [], manifest
    while at.parent_version:
        chain.append(at.parent_version)
        at = _manifest(directory / policy_dirname(at.parent_version))
    found = {
        **asdict(manifest),
        "digest": manifest_digest(directory / policy_dirname(version)),
        "lineage": [version, *chain, 0],
    }
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console = Console()
    console.print(f"[bold]policy v{version}[/bold], {manifest.kind}, SHA-256 of the manifest {found['digest']}")
    console.print("  " + " <- ".join(f"v{each}" if each else "base model" for each in found["lineage"]))
    made = f"  run {manifest.run_id}, iteration {manifest.iteration}, made {manifest.created}"
    console.print(made, soft_wrap=True, markup=False)
    console.print(f"  base model {manifest.base_digest}", soft_wrap=True)
    console.print(f"  picture rule {manifest.picture_rule or 'not named (Sightline 0.1.0)'}")
    for name, digest in manifest.files.items():
        console.print(f"  {digest}  {name}", soft_wrap=True, markup=False)
    for name, value in manifest.metrics.items():
        console.print(f"  {name}: {value}", markup=False)


def verify_all(run: Path, version: int | None, as_json: bool) -> None:
    """Check every file of the policies against its manifest.

    Raises:
        NotFound: there is no such version.
        DataCorrupted: a file has changed; the message names policy and file.
    """
    directory = directory_of(run)
    if version is not None and not (directory / policy_dirname(version)).is_dir():
        raise NotFound(
            f"{run} has no policy {version}: `sightline policies list {run}` shows them", reason="POLICY_NOT_FOUND"
        )
    paths = [directory / policy_dirname(version)] if version is not None else sorted(directory.glob("v[0-9]*"))
    results: list[dict[str, Any]] = []
    for path in paths:
        try:
            manifest = verify(path)
            results.append({"policy": path.name, "ok": True, "files": len(manifest.files), "error": ""})
        except ManifestError as error:
            results.append({"policy": path.name, "ok": False, "files": 0, "error": str(error)})
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        for one in results:
            mark = f"[green]ok[/green]  {one['files']} files" if one["ok"] else f"[red]bad[/red] {escape(one['error'])}"
            Console().print(f"{one['policy']}  {mark}", soft_wrap=True)
    bad = [one["policy"] for one in results if not one["ok"]]
    if bad:
        raise DataCorrupted(
            f"{len(bad)} of {len(results)} policies are damaged: {', '.join(bad)}", reason="POLICY_CHANGED_FILE"
        )


def _row(path: Path) -> dict[str, Any]:
    try:
        manifest = read_manifest(path)
    except ManifestError as error:
        return {"version": path.name, "state": error.reason.lower(), "kind": "", "parent": "", "run": "",
                "iteration": "", "digest": ""}  # fmt: skip
    return {"version": manifest.version, "state": "on disk", "kind": manifest.kind, "parent": manifest.parent_version,
            "run": manifest.run_id, "iteration": manifest.iteration, "digest": manifest_digest(path)}  # fmt: skip


def _manifest(path: Path) -> PolicyManifest:
    try:
        return read_manifest(path)
    except ManifestError as error:
        raise NotFound(f"{path.name}: {error}", reason=error.reason) from error
