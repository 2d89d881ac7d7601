"""A model's name -> its checkpoint folder, which is downloaded if it is nowhere on this machine."""

from difflib import get_close_matches
from pathlib import Path

from bertqa.errors import UserError
from bertqa.model import folders


def find_folder(name: str, *, allow_bin: bool = False) -> Path:
    """The checkpoint folder of a name: the first that there is, of

    1. the path of a folder,
    2. a name under weights/ (see ``weights_dir``),
    3. the name of a model that came with the installed package,
    4. a name on the hub, which is downloaded into weights/.

    Raises:
        UserError: it is not to be had.
    """
    for parent in (folders.weights_dir(), folders.installed_weights_dir()):
        local = folders.find_local(name, parent)
        if local is not None:
            return local
    if name == folders.SHIPPED_MODEL:
        raise UserError(
            f"the model {name} is neither in {folders.weights_dir().resolve()} nor in "
            f"{folders.installed_weights_dir()}: clone the repository, which holds it, or name "
            "another model"
        )
    from bertqa.model.hub import find_checkpoint  # late: takes 0.25 s, for downloads

    try:
        return find_checkpoint(name, folders.weights_dir(), allow_bin=allow_bin)
    except UserError as error:
        meant = get_close_matches(name, _names_here(), n=1)
        if not meant:
            raise
        raise UserError(f"{error}; {meant[0]} is here, if that was meant") from error


def _names_here() -> list[str]:
    """The models that are there without a download."""
    return sorted(
        folder.name
        for parent in (folders.weights_dir(), folders.installed_weights_dir())
        for folder in (parent.iterdir() if parent.is_dir() else ())
        if folders.is_checkpoint(folder)
    )
