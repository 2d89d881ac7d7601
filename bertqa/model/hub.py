"""Lookup of a model's checkpoint folder, on this machine or on the Hugging Face hub."""

import os
import re
from pathlib import Path
from typing import Any

from bertqa.errors import UserError, did_you_mean, flag, reason
from bertqa.files import (
    BIN_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    OPTIONAL_FILES,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    read_json_object,
)
from bertqa.model.config import check_architecture

SHIPPED_MODEL = "minilm-l6-squad"  # included in the project


def find_folder(
    name: str,
    *,
    revision: str | None = None,
    allow_bin: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Return the checkpoint folder of a model.

    The first of these that exists:

    1. the folder with this path,
    2. the folder with this name in weights/ (see ``weights_dir``),
    3. the folder with this name in the installed package,
    4. the folder in the Hugging Face cache, after downloading the files that a BERT needs.

    Args:
        name: path of a folder, or name of a model.
        revision: branch, tag or commit of a model on the hub; None is its newest commit.
        allow_bin: download pytorch_model.bin if the hub has no safetensors.
        token: access token of the hub; None or True uses the saved one, False uses none.

    Raises:
        UserError: there is no such model, or it cannot be downloaded.
    """
    parents = (weights_dir(), installed_weights_dir())
    local = [parent / name for parent in parents if _stays_inside(name)]
    local = [folder for folder in local if is_checkpoint(folder)]
    if os.path.isdir(name):  # noqa: PTH112 (False also for an invalid file name)
        local.insert(0, Path(name))
    if local and revision:
        raise UserError(
            f"{flag('revision')}: requires a model of the hub, got {revision!r} for the folder "
            f"{local[0]}: remove it, or pass the model's name on the hub"
        )
    if local:
        return local[0]
    if os.path.isfile(name):  # noqa: PTH113 (as above)
        raise UserError(f"model: must be a checkpoint folder, got the file {name}: pass its folder")
    if name == SHIPPED_MODEL:
        raise UserError(
            f"model: {name} must be in {parents[0].resolve()} or {parents[1]}, got neither: clone "
            "the repository, which contains it, or choose another model"
        )
    try:
        return _download(name, revision, allow_bin, token)
    except UserError as error:
        names = [f.name for parent in parents for f in parent.glob("*") if is_checkpoint(f)]
        raise UserError(f"{error}{did_you_mean(name, names)}") from error


def weights_dir() -> Path:
    """Return the folder weights/ of the source tree, or of the current folder without a tree."""
    tree = Path(__file__).resolve().parents[2]
    return (tree if (tree / "pyproject.toml").exists() else Path()) / "weights"


def installed_weights_dir() -> Path:
    """Return the folder of the models in an installed package."""
    return Path(__file__).resolve().parents[1] / "pretrained"


def is_shipped(folder: Path) -> bool:
    """Return whether this is the folder of the shipped model."""
    parents = (weights_dir(), installed_weights_dir())
    return folder.resolve() in [(parent / SHIPPED_MODEL).resolve() for parent in parents]


def is_checkpoint(folder: Path) -> bool:
    """Return whether this is a folder with a config.json."""
    return os.path.isfile(folder / CONFIG_FILE)  # noqa: PTH113 (as above)


def commit_of(folder: Path) -> str | None:
    """Return the commit of a folder in the Hugging Face cache; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def _stays_inside(name: str) -> bool:
    return "\\" not in name and {"", ".", ".."}.isdisjoint(name.split("/"))


# --- download ------------------------------------------------------------------------------------


def _download(name: str, revision: str | None, allow_bin: bool, token: str | bool | None) -> Path:
    """Return a hub model's folder in the cache; download missing files if the hub is reachable."""
    import huggingface_hub as client  # late: takes 0.25 s, for downloads
    from huggingface_hub import errors, utils  # late: as above

    # HTTPError comes from the HTTP library; RuntimeError from hf_xet, which transfers large files;
    # ValueError, KeyError and TypeError from a response that is not a hub's.
    failures = (OSError, errors.HTTPError, RuntimeError, ValueError, KeyError, TypeError)
    try:
        utils.validate_repo_id(name)  # the name becomes part of paths
        listing = _list_files(name, revision, token)
    except errors.HFValidationError as error:
        raise UserError(
            f"model: must be a checkpoint folder or a model's name, got {name!r}: pass an existing "
            "folder, or a name such as bert-base-uncased"
        ) from error
    except failures as error:
        for file in (WEIGHTS_FILE, INDEX_FILE, BIN_FILE):
            found = client.try_to_load_from_cache(name, file, revision=revision)
            if isinstance(found, str) and is_checkpoint(Path(found).parent):
                return Path(found).parent
        raise UserError(_describe_failure(error, name, revision)) from error

    def fetch(patterns: list[str]) -> Path:
        options: dict[str, Any] = {"allow_patterns": patterns, "ignore_patterns": "*/*"}
        try:
            return Path(client.snapshot_download(name, revision=revision, token=token, **options))
        except failures as error:
            raise UserError(_describe_failure(error, name, revision)) from error

    if CONFIG_FILE in listing:  # reject another architecture before downloading its weights
        config = fetch([CONFIG_FILE]) / CONFIG_FILE
        check_architecture(read_json_object(config), f"model: {name!r}, {CONFIG_FILE}")
    return fetch(_needed_files(name, listing, allow_bin))


def _list_files(name: str, revision: str | None, token: str | bool | None) -> set[str]:
    """Return the names of a model's files on the hub."""
    from huggingface_hub import HfApi, constants  # late: as above

    timeout = constants.HF_HUB_ETAG_TIMEOUT  # as for downloads; the default is no timeout
    info = HfApi().model_info(name, revision=revision, timeout=timeout, token=token)
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):  # it becomes part of paths
        raise ValueError("no commit in the response")
    return {sibling.rfilename for sibling in info.siblings or ()}


def _needed_files(name: str, listing: set[str], allow_bin: bool) -> list[str]:
    """Return patterns of the files that a BERT needs.

    Raises:
        UserError: ``listing`` lacks some of them.
    """
    weights = next((f for f in (WEIGHTS_FILE, INDEX_FILE, BIN_FILE) if f in listing), None)
    lacks = [] if CONFIG_FILE in listing else [CONFIG_FILE]
    if listing.isdisjoint(TOKENIZER_FILES):
        lacks.append(" or ".join(TOKENIZER_FILES))
    if weights is None:
        lacks.append(WEIGHTS_FILE)
    if weights is None or lacks:
        raise UserError(
            f"model: {name!r} must be a complete checkpoint, got one on the hub without "
            f"{' and '.join(lacks)}: choose another model"
        )
    if weights == BIN_FILE and not allow_bin:
        raise UserError(
            f"model: {name!r} must have safetensors, got only {BIN_FILE} on the hub, a pickle, "
            f"which may contain more than weights: pass {flag('allow_bin')} if you trust its source"
        )
    shards = ["model-*.safetensors"] if weights == INDEX_FILE else []
    return [CONFIG_FILE, *TOKENIZER_FILES, *OPTIONAL_FILES, weights, *shards]


def _describe_failure(error: Exception, name: str, revision: str | None) -> str:
    """Return the message for a failure of the hub, the connection or the disk."""
    from huggingface_hub import constants, errors  # late: as above

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client's "not in the cache" hides the cause
    hub = constants.ENDPOINT
    elsewhere = f"put its folder at {weights_dir() / name}, or pass another checkpoint folder"
    match error:
        case errors.GatedRepoError():
            return (
                f"model: must be accessible to you, got {name!r}, which is gated: accept its terms "
                f"at {hub}/{name} and log in with 'hf auth login', or {elsewhere}"
            )
        case errors.RepositoryNotFoundError():
            return (
                f"model: must be a folder or a model on the hub, got {name!r}, which is unknown or "
                "private: check the name, log in with 'hf auth login', or pass a folder"
            )
        case errors.RevisionNotFoundError():
            return (
                f"{flag('revision')}: must be a branch, tag or commit of the model {name!r}, got "
                f"{revision!r}: choose one of {hub}/{name}"
            )
        case errors.HfHubHTTPError():
            return (
                f"model: {name!r} must be downloadable, got HTTP status "
                f"{error.response.status_code}: try again later, or {elsewhere}"
            )
        case errors.OfflineModeIsEnabled():
            return (
                f"model: {name!r} must be a folder, or complete in {constants.HF_HUB_CACHE} while "
                f"HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE, or {elsewhere}"
            )
        case errors.FileMetadataError() | ValueError() | KeyError() | TypeError():
            return (
                f"model: {name!r} must come from a hub, got an invalid response from {hub} "
                f"({reason(error)}): check HF_ENDPOINT and the network (a proxy, a log-in page)"
            )
        # Errors of HTTP libraries have no errno, so this is an error of the disk.
        case OSError(errno=int()):
            return (
                f"model: {name!r} must fit into {constants.HF_HUB_CACHE}, got "
                f"{error.strerror}: free space there, or set HF_HOME to another folder"
            )
        case _:
            return (
                f"model: {name!r} is not a folder, and as a model on the hub requires a connection "
                f"to {hub}, got none ({reason(error)}): check the path, {elsewhere}"
            )
