"""A model's name -> its checkpoint folder: on this machine, or in the Hugging Face cache."""

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bertqa.errors import UserError, reason
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

SHIPPED_MODEL = "minilm-l6-squad"  # the one that comes with the project


def find_folder(
    name: str,
    *,
    revision: str | None = None,
    allow_bin: bool = False,
    token: str | bool | None = None,
) -> Path:
    """The checkpoint folder of a name: the first that there is, of

    1. the path of a folder,
    2. a name under weights/ (see ``weights_dir``),
    3. the name of a model that came with the installed package,
    4. a name on the hub: its folder in the Hugging Face cache, with the files that a BERT needs.

    Args:
        revision: branch, tag or commit of a model on the hub; None is its newest commit.
        allow_bin: fetch pytorch_model.bin where the hub has no safetensors.
        token: of the hub; None or True is the one that is logged in, False is none.

    Raises:
        UserError: there is no such model, or it cannot be downloaded.
    """
    parents = (weights_dir(), installed_weights_dir())
    local = [parent / name for parent in parents if _stays_inside(name)]
    local = [folder for folder in local if is_checkpoint(folder)]
    if os.path.isdir(name):  # noqa: PTH112 (False also for a name that no file can have)
        local.insert(0, Path(name))
    if local and revision:
        raise UserError(
            f"--revision: must go with a model of the hub, got {revision!r} for the folder "
            f"{local[0]}: drop it, or name the model as the hub does"
        )
    if local:
        return local[0]
    if name == SHIPPED_MODEL:
        raise UserError(
            f"the model {name} is neither in {parents[0].resolve()} nor in {parents[1]}: clone the "
            "repository, which holds it, or name another model"
        )
    try:
        return _download(name, revision, allow_bin, token)
    except UserError as error:
        names = [f.name for parent in parents for f in parent.glob("*") if is_checkpoint(f)]
        meant = get_close_matches(name, names, n=1)
        if not meant:
            raise
        raise UserError(f"{error}; did you mean {meant[0]!r}?") from error


def weights_dir() -> Path:
    """The folder weights/ of the source tree; of the current folder, if there is no such tree."""
    tree = Path(__file__).resolve().parents[2]
    return (tree if (tree / "pyproject.toml").exists() else Path()) / "weights"


def installed_weights_dir() -> Path:
    """Where an installed package has the models that came with it."""
    return Path(__file__).resolve().parents[1] / "pretrained"


def is_shipped(folder: Path) -> bool:
    """Whether it is the one of the model that comes with the project."""
    parents = (weights_dir(), installed_weights_dir())
    return folder.resolve() in [(parent / SHIPPED_MODEL).resolve() for parent in parents]


def is_checkpoint(folder: Path) -> bool:
    """Whether it is a folder with a config.json."""
    return os.path.isfile(folder / CONFIG_FILE)  # noqa: PTH113 (as above)


def commit_of(folder: Path) -> str | None:
    """The commit of a folder in the Hugging Face cache; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def _stays_inside(name: str) -> bool:
    return "\\" not in name and {"", ".", ".."}.isdisjoint(name.split("/"))


# --- download ------------------------------------------------------------------------------------


def _download(name: str, revision: str | None, allow_bin: bool, token: str | bool | None) -> Path:
    """The folder of a model of the hub in the cache, completed from the hub if that answers."""
    import huggingface_hub as client  # late: takes 0.25 s, for downloads
    from huggingface_hub import errors, utils  # late: as above

    # HTTPError is that of the HTTP library, whichever it is; RuntimeError comes from hf_xet, the
    # hub's transfer of large files; ValueError and the like from an answer that is not a hub's.
    failures = (OSError, errors.HTTPError, RuntimeError, ValueError, KeyError, TypeError)
    try:
        utils.validate_repo_id(name)  # the name becomes a part of paths, too
        listing = _list_files(name, revision, token)
    except errors.HFValidationError as error:
        raise UserError(
            f"model: must be a checkpoint folder or the name of one, got {name!r}: pass an "
            "existing folder, or a name such as bert-base-uncased"
        ) from error
    except failures as error:
        for file in (WEIGHTS_FILE, INDEX_FILE, BIN_FILE):
            found = client.try_to_load_from_cache(name, file, revision=revision)
            if isinstance(found, str) and is_checkpoint(Path(found).parent):
                return Path(found).parent
        raise UserError(_said_plainly(error, name, revision)) from error

    def fetch(patterns: list[str]) -> Path:
        options: dict[str, Any] = {"allow_patterns": patterns, "ignore_patterns": "*/*"}
        try:
            return Path(client.snapshot_download(name, revision=revision, token=token, **options))
        except failures as error:
            raise UserError(_said_plainly(error, name, revision)) from error

    if CONFIG_FILE in listing:  # another model is refused before its weights are fetched
        config = fetch([CONFIG_FILE]) / CONFIG_FILE
        check_architecture(read_json_object(config), f"model: {name!r}, {CONFIG_FILE}")
    return fetch(_needed_files(name, listing, allow_bin))


def _list_files(name: str, revision: str | None, token: str | bool | None) -> set[str]:
    """The files of a model on the hub."""
    from huggingface_hub import HfApi, constants  # late: as above

    timeout = constants.HF_HUB_ETAG_TIMEOUT  # the one of the client's downloads; else it is none
    info = HfApi().model_info(name, revision=revision, timeout=timeout, token=token)
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):  # it becomes a part of paths
        raise ValueError("it names no commit")
    return {sibling.rfilename for sibling in info.siblings or ()}


def _needed_files(name: str, listing: set[str], allow_bin: bool) -> list[str]:
    """Patterns of the files that a BERT needs.

    Raises:
        UserError: some of them are not in ``listing``.
    """
    weights = next((f for f in (WEIGHTS_FILE, INDEX_FILE, BIN_FILE) if f in listing), None)
    lacks = [] if CONFIG_FILE in listing else [CONFIG_FILE]
    if listing.isdisjoint(TOKENIZER_FILES):
        lacks.append(" or ".join(TOKENIZER_FILES))
    if weights is None:
        lacks.append(WEIGHTS_FILE)
    if weights is None or lacks:
        raise UserError(
            f"model: {name!r} must be a whole checkpoint, got one on the hub without "
            f"{' and '.join(lacks)}: choose another model"
        )
    if weights == BIN_FILE and not allow_bin:
        raise UserError(
            f"model: {name!r} must have safetensors, got only {BIN_FILE} on the hub, a pickle, "
            "which may hold more than weights: pass --allow_bin if you trust where it comes from"
        )
    shards = ["model-*.safetensors"] if weights == INDEX_FILE else []
    return [CONFIG_FILE, *TOKENIZER_FILES, *OPTIONAL_FILES, weights, *shards]


def _said_plainly(error: Exception, name: str, revision: str | None) -> str:
    """One sentence for a failure of the hub, of the connection to it, or of the disk."""
    from huggingface_hub import constants, errors  # late: as above

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client's "not in the cache either" hides why
    hub, elsewhere = constants.ENDPOINT, f"put its folder at {weights_dir() / name}"
    match error:
        case errors.GatedRepoError():
            return (
                f"model: must be open to you, got {name!r}, which is gated: accept its terms at "
                f"{hub}/{name} and log in with 'hf auth login', or {elsewhere}"
            )
        case errors.RepositoryNotFoundError():
            return (
                f"model: must be a model that the hub shows you, got {name!r}, which is unknown "
                "or private: check the name, log in with 'hf auth login', or pass a folder"
            )
        case errors.RevisionNotFoundError():
            return (
                f"--revision: must be a branch, tag or commit of the model {name!r}, got "
                f"{revision!r}: choose one of {hub}/{name}"
            )
        case errors.HfHubHTTPError():
            return (
                f"model: {name!r} must come from the hub, got HTTP status "
                f"{error.response.status_code}: try again later, or {elsewhere}"
            )
        case errors.OfflineModeIsEnabled():
            return (
                f"model: {name!r} must be whole in {constants.HF_HUB_CACHE} while HF_HUB_OFFLINE "
                f"is set, got none or a part: remove HF_HUB_OFFLINE, or {elsewhere}"
            )
        case errors.FileMetadataError() | ValueError() | KeyError() | TypeError():
            return (
                f"model: {name!r} must come from a hub, got another answer from {hub} "
                f"({reason(error)}): check HF_ENDPOINT and the network (a proxy, a log-in page)"
            )
        # The HTTP libraries tell what the system said in words; with a number it was the disk.
        case OSError(errno=int()):
            return (
                f"model: {name!r} must fit into {constants.HF_HUB_CACHE}, got: "
                f"{error.strerror}; free space there, or choose another with HF_HOME"
            )
        case _:
            return (
                f"model: {name!r} needs a connection to {hub}, got none that works "
                f"({reason(error)}): {elsewhere}"
            )
