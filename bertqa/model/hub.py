"""From a model's name to a folder with its checkpoint, fetched from the Hugging Face hub at need.

A folder under the weights directory is there whole or not at all: the files arrive in a hidden
folder beside it, which takes its place when the last file is complete.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download

# HTTPError is the base error of the HTTP library under the client: requests, httpx or httpx2, by
# the client's version. It is taken from here because no error of the client's own covers a refused
# connection or a timeout.
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import WeakFileLock, validate_repo_id

from bertqa.errors import UserError, shown
from bertqa.files import (
    BIN_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    OPTIONAL_FILES,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    parse_json,
    read_whole,
)
from bertqa.model.folders import find_local, is_checkpoint

# Both come from elsewhere and become parts of a path here: neither may hold "/" or "..".
_SHARD = re.compile(r"[\w-]+(\.[\w-]+)*\.safetensors", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_checkpoint(name: str, weights_dir: Path, *, allow_bin: bool = False) -> Path:
    """The folder of the checkpoint ``name``, downloaded on first use.

    Looked for in this order: ``name`` as a folder; ``weights_dir / name`` with a config.json; the
    hub, from which it comes into ``weights_dir / name``. Only the files that a BERT needs are
    fetched, all of one commit; ``allow_bin`` admits pytorch_model.bin where nothing else is there.
    A download that was interrupted keeps its finished files for the next call, and processes that
    ask for the same name at once download it once.

    Raises:
        UserError: ``name`` is neither a folder nor a name that the hub could have; the hub does
            not give the model, lacks a file of it, or cannot be reached; the disk refuses.
    """
    local = find_local(name, weights_dir)
    if local is not None:
        return local
    _check_name(name)
    target = weights_dir / name
    with _said_plainly(name, target):
        _check_free(name, target)
        return _download(name, target, weights_dir, allow_bin)


# --- names and folders ---------------------------------------------------------------------------


def _check_name(name: str) -> None:
    """Raise UserError unless ``name`` could be a model's on the hub.

    Such a name is made of letters, digits, "-", "_", "." and one "/" at most, with no ".." and a
    letter or digit at both ends: under the weights directory it leads to no other place.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"{name!r} is neither a checkpoint folder nor a name that the hub could have: "
            "pass an existing folder, or a name such as bert-base-uncased"
        ) from error
    if Path(name).is_file():
        raise UserError(f"{name!r} is a file: pass the checkpoint folder that it belongs to")


def _check_free(name: str, target: Path) -> None:
    """Raise UserError if something that is no checkpoint stands where the download would go."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(
            f"{target}, where model {name!r} would go, is there but holds no {CONFIG_FILE}: "
            "move it away, or complete it"
        )


# --- download ------------------------------------------------------------------------------------


def _download(name: str, target: Path, weights_dir: Path, allow_bin: bool) -> Path:
    commit, listing = _list_files(name)
    weights = _choose_weights(name, listing, allow_bin)
    slug = name.replace("/", "--")  # no name on the hub has "--", nor a "." in front
    work, lock = weights_dir / f".download-{slug}", weights_dir / f".lock-{slug}"
    partial = work / commit  # by commit, so that nothing which an older one left is mixed in
    partial.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not is_checkpoint(target):  # while we waited, another process may have brought it
            _fill(partial, name, commit, listing, weights)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(target)
        shutil.rmtree(work, ignore_errors=True)
        lock.unlink(missing_ok=True)  # whoever waits for it finds the checkpoint all the same
    return target


def _list_files(name: str) -> tuple[str, set[str]]:
    """The newest commit of a model on the hub, and the names of its files."""
    # The timeout is the one of the client's downloads; its other calls have none unless told.
    try:
        info = HfApi().model_info(name, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise _not_the_hub(name) from error
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise _not_the_hub(name)
    return info.sha, {sibling.rfilename for sibling in info.siblings or ()}


def _choose_weights(name: str, listing: set[str], allow_bin: bool) -> str:
    """The file in ``listing`` that holds the weights, or that names the files that do.

    Raises:
        UserError: ``listing`` is no whole checkpoint, or its weights are a pickle that
            ``allow_bin`` does not admit.
    """
    weights = next((f for f in (WEIGHTS_FILE, INDEX_FILE, BIN_FILE) if f in listing), None)
    lacks = [CONFIG_FILE] if CONFIG_FILE not in listing else []
    if listing.isdisjoint(TOKENIZER_FILES):
        lacks.append(" or ".join(TOKENIZER_FILES))
    if weights is None:
        lacks.append(f"{WEIGHTS_FILE} or {INDEX_FILE}")
    if weights is None or lacks:
        raise UserError(
            f"model {name!r} on the hub lacks {' and '.join(lacks)}: choose another model, or "
            "pass the folder of a whole checkpoint"
        )
    if weights == BIN_FILE and not allow_bin:
        raise UserError(
            f"model {name!r} on the hub has its weights only in {BIN_FILE}, a pickle, which may "
            "hold more than weights: pass --allow_bin if you trust where it comes from"
        )
    return weights


def _fill(folder: Path, name: str, commit: str, listing: set[str], weights: str) -> None:
    """Fetch into ``folder`` the files of the checkpoint that are not there yet."""
    wanted = (CONFIG_FILE, *TOKENIZER_FILES, *OPTIONAL_FILES, weights)
    for file in wanted:
        if file in listing:
            _fetch(folder, name, commit, file)
    if weights == INDEX_FILE:
        for shard in _shards(name, folder / INDEX_FILE, listing):
            _fetch(folder, name, commit, shard)
    shutil.rmtree(folder / ".cache")  # the client's notes on the state of the download


def _fetch(folder: Path, name: str, commit: str, file: str) -> None:
    try:
        hf_hub_download(name, file, revision=commit, local_dir=folder)
    except RuntimeError as error:  # the one error of hf_xet, the hub's transfer of large files
        raise ConnectionError(str(error)) from error


def _shards(name: str, index: Path, listing: set[str]) -> list[str]:
    """The files that an index names, sorted.

    Raises:
        UserError: it is no index, or a file is not in ``listing`` or not a plain file name.
    """
    where = f"{INDEX_FILE} of model {name!r} on the hub"
    advice = "choose another model, or pass the folder of a whole checkpoint"
    try:
        shards = set(parse_json(read_whole(index))["weight_map"].values())
        bad = [shard for shard in shards if not _SHARD.fullmatch(shard) or shard not in listing]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} has no weight_map from tensors to files: {advice}") from error
    if bad or not shards:
        what = f"the shard {shown(min(bad))}, which is no file of that model" if bad else "no shard"
        raise UserError(f"{where} names {what}: {advice}")
    return sorted(shards)


# --- errors --------------------------------------------------------------------------------------


@contextmanager
def _said_plainly(name: str, target: Path) -> Iterator[None]:
    """Turn the failures of the hub, of the way to it and of the disk into one sentence each."""
    try:
        yield
    except (OSError, HTTPError) as error:
        raise _plain(error, name, target) from error


def _plain(error: Exception, name: str, target: Path) -> UserError:
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client's "not in the cache either" hides why
    otherwise = f"put its checkpoint folder at {target}, or pass a folder"
    if isinstance(error, GatedRepoError):
        return UserError(
            f"model {name!r} is gated: accept its terms at {constants.ENDPOINT}/{name} and log in "
            f"with 'hf auth login', or {otherwise}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"the hub shows no model {name!r}, so it is unknown or private: check the name, log in "
            "with 'hf auth login', or pass a checkpoint folder"
        )
    if isinstance(error, HfHubHTTPError):
        return UserError(
            f"the hub answered with HTTP status {error.response.status_code} for model {name!r}: "
            f"try again later, or {otherwise}"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(
            f"there is no connection for model {name!r}, as HF_HUB_OFFLINE is set: {otherwise}"
        )
    if isinstance(error, FileMetadataError):
        return _not_the_hub(name)
    # The HTTP libraries tell what the system said in words; with a number it was the disk.
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(
            f"model {name!r} cannot be stored at {target}: {error.strerror}; free or choose "
            "another place"
        )
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return UserError(
        f"there is no working connection to {constants.ENDPOINT} for model {name!r} ({reason}): "
        f"{otherwise}"
    )


def _not_the_hub(name: str) -> UserError:
    return UserError(
        f"what {constants.ENDPOINT} answered for model {name!r} does not come from a hub: check "
        "HF_ENDPOINT and the way to the network (a proxy, a log-in page)"
    )
