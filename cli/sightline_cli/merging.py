"""Merge a policy's adapter into a whole checkpoint, for engines that serve nothing else (TGI)."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from sightline.errors import AlreadyExists, DataCorrupted, InvalidInput, NotFound, PreconditionFailed
from sightline.sampler import ManifestError, PolicyManifest, model_digest, policy_dirname, verify, write_manifest
from sightline_trainer.recipe import Recipe
from sightline_trainer.runs import RunDirectory

from sightline_cli.policy_files import directory_of


def merge(run: Path, version: int, to: Path, base: Path | None = None) -> PolicyManifest:
    """Write the base model's checkpoint with a policy's adapter in its weights, and a manifest of kind "merged" with
    the policy's version and lineage. The directory is written completely, or not at all. The chat template and pixel
    bounds are the run's.

    Args:
        run: a run directory, or a directory of policies.
        version: the policy's.
        to: the new directory.
        base: directory of the base model; None takes the run's.

    Returns:
        The manifest.

    Raises:
        NotFound: no such policy, or the base model cannot be found.
        AlreadyExists: `to` exists.
        DataCorrupted: the policy's files do not match its manifest.
        InvalidInput: the policy is a whole checkpoint already.
        PreconditionFailed: the base model is a different one, or the adapter is of a kind that can't be merged.
    """
    if to.exists():
        raise AlreadyExists(f"{to} already exists; name a new directory", reason="DIRECTORY_EXISTS")
    policy = directory_of(run) / policy_dirname(version)
    try:
        manifest = verify(policy)
    except ManifestError as error:
        if error.reason == "MISSING_DIRECTORY":
            raise NotFound(
                f"{run} has no policy {version}: `sightline policies list {run}` shows them", reason="POLICY_NOT_FOUND"
            ) from error
        raise DataCorrupted(str(error), reason=error.reason) from error
    if manifest.kind != "lora":
        raise InvalidInput(f"policy {version} is a whole checkpoint ({manifest.kind}); copy it", reason="NO_ADAPTER")
    model = base if base is not None else base_of(run)
    if model_digest(model) != manifest.base_digest:
        raise PreconditionFailed(
            f"policy {version} was trained on a model with digest {manifest.base_digest}, but {model} has another; "
            f"name the base model with --base",
            reason="WRONG_BASE_MODEL",
        )
    from sightline_sampler.engines.remote.merge import merge as merge_files

    aside = to.with_name(f".{to.name}.merging")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        merge_files(policy, model, aside)
        if (recipe := RunDirectory(run).recipe()) is not None:
            _show_as(recipe, aside)
        done = write_manifest(aside, dataclasses.replace(manifest, kind="merged", files={}, created=""))
        aside.rename(to)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return done


def _show_as(recipe: Recipe, checkpoint: Path) -> None:
    """Write the recipe's processor settings into the copy of the base model's processor."""
    made = recipe.processor
    if made.own:
        return
    made.load().save_pretrained(checkpoint)
    # An older file of the base model, which would be read instead of the one just written.
    (checkpoint / "chat_template.json").unlink(missing_ok=True)


def base_of(run: Path) -> Path:
    """The base model's directory, as the run's recipe names it; for a hub name, in the local cache.

    Raises:
        NotFound: there is no recipe, or its model is not on this machine.
    """
    recipe = RunDirectory(run).recipe()
    if recipe is None:
        raise NotFound(f"{run} has no recipe.yaml that names the base model; give --base", reason="NO_BASE_MODEL")
    if Path(recipe.base_model).is_dir():
        return Path(recipe.base_model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(recipe.base_model, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError) as error:
        raise NotFound(
            f"the run's model {recipe.model!r} is not a directory here and not in the hub's cache; give --base",
            reason="NO_BASE_MODEL",
        ) from error
