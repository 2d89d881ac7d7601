"""Files and folders are written atomically, and errors are one sentence."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from bertqa.errors import UserError
from bertqa.files import (
    check_output_file,
    check_regular,
    new_folder,
    os_errors_as_user_errors,
    path_exists,
    write_file,
    write_json,
    write_text,
)


class Fault(Exception):
    """An error in the middle of a write."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    """Sets the process's umask for one test."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


def refusal(act):
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fill(path, text):
    with new_folder(path) as partial:
        (partial / "a").write_text(text)


# --- one file ------------------------------------------------------------------------------------


def test_a_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    seen = []

    def write(partial):
        partial.write_text("ne")
        seen.append((partial.parent, path.read_text()))
        partial.write_text("new")

    with path.open() as opened:
        write_file(path, write)
        assert opened.read() == "old"  # a reader keeps the file that it opened
    assert seen == [(tmp_path, "old")]  # in the same folder, so that the rename is atomic
    assert path.read_text() == "new"
    assert names(tmp_path) == ["x.txt"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Otherwise a power failure could keep the rename but lose the data."""
    synced = []
    real = os.fsync

    def sync(descriptor):
        synced.append((tmp_path / "x").exists())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    write_text(tmp_path / "x", "new")
    assert synced == [False, True]  # the data, then the name
    synced.clear()
    with new_folder(tmp_path / "folder") as folder:
        (folder / "a").write_text("a")
        (folder / "b").write_text("b")
        assert not synced
    assert len(synced) == 4  # both files, the folder, and its parent


FAULTS = [Fault(), KeyboardInterrupt(), SystemExit(1), OSError(28, "No space left on device")]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("what", ["a new file", "an old file", "a folder"])
def test_a_partial_file_does_not_appear(tmp_path, fault, what):
    path = tmp_path / "x"
    if what == "an old file":
        path.write_text("old")

    def write(partial):
        partial.write_text("ne")
        raise fault

    def act():
        if what == "a folder":
            with new_folder(path) as partial:
                write(partial / "a")
        else:
            write_file(path, write)

    if isinstance(fault, OSError):
        assert refusal(act).startswith(f"{path} cannot be written: No space left on device: ")
    else:
        with pytest.raises(type(fault)):
            act()
    assert names(tmp_path) == (["x"] if what == "an old file" else [])
    assert what != "an old file" or path.read_text() == "old"


@pytest.mark.parametrize("kind", ["link", "pipe", "file"])
def test_an_existing_temporary_file_is_removed(tmp_path, kind):
    """In an untrusted folder it may be a link to a user's file."""
    mine, planted = tmp_path / "mine", tmp_path / "model" / ".x.json.partial"
    mine.write_text("mine")
    planted.parent.mkdir()
    if kind == "link":
        planted.symlink_to(mine)
    elif kind == "pipe":
        os.mkfifo(planted)
    else:
        planted.write_text("half")
    write_json(tmp_path / "model" / "x.json", {"a": 1})
    assert mine.read_text() == "mine"
    assert json.loads((tmp_path / "model" / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["x.json"]


def test_an_error_without_errno(tmp_path):
    def act():
        with os_errors_as_user_errors(tmp_path, "read"):
            raise OSError("the tape is torn")

    assert refusal(act).startswith(f"{tmp_path} cannot be read: the tape is torn: ")


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("stays")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x.txt", tmp_path / "folder", tmp_path / ("x" * 300)):
        assert str(path) in refusal(lambda path=path: write_text(path, "x"))
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "stays"
    assert names(tmp_path / "folder") == []


def test_a_new_file_is_checked(tmp_path):
    (tmp_path / "note").write_text("mine")
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    check_output_file(tmp_path / "a" / "b" / "C.JSON", "--copy", [".json", ".jsonl"])
    for path, words in (
        (tmp_path / "c.csv", "c.csv: must end in .json or .jsonl, got '.csv': rename it"),
        (tmp_path / "gone.json", "gone.json: must be a new file"),
        (tmp_path / "note" / "a" / "c.json", "note must be a folder, got a file"),
        (tmp_path, f"{tmp_path}: must be a file, got a folder"),
    ):
        with pytest.raises(UserError) as caught:
            check_output_file(path, "--copy", [".json", ".jsonl"])
        assert str(caught.value).startswith("--copy ") and words in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gone.json", "note"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert "Permission denied" in refusal(lambda: write_text(tmp_path / "x.txt", "x"))
        with pytest.raises(UserError, match="no write permission for"):
            check_output_file(tmp_path / "a" / "c.json", "--copy", [".json"])
        tmp_path.chmod(0o000)
        assert not path_exists(tmp_path / "x.txt")
        assert "check its permissions" in refusal(lambda: check_regular(tmp_path / "x.txt"))
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("mask", "of_file", "of_folder"),
    [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)],
)
def test_permissions_follow_the_umask(tmp_path, umask, mask, of_file, of_folder):
    umask(mask)

    def write(partial):
        partial.write_text("x")
        partial.chmod(0o600)  # as safetensors does

    write_file(tmp_path / "x.txt", write)
    fill(tmp_path / "folder", "1")
    assert (mode(tmp_path / "x.txt"), mode(tmp_path / "folder")) == (of_file, of_folder)
    assert umask(mask) == mask  # it was restored


@pytest.mark.parametrize("text", ["", "plain\n", "Zoë, 老钟表匠, 🐟\r\n\x00\u2028", "\ufeffmark"])
def test_text_is_utf8_byte_for_byte(tmp_path, text):
    write_text(tmp_path / "a" / "b" / "x.txt", text)  # creates parent folders
    assert (tmp_path / "a" / "b" / "x.txt").read_bytes() == text.encode("utf-8")


def test_lone_surrogates_are_escaped(tmp_path):
    write_text(tmp_path / "x.txt", "a\ud83db")
    assert (tmp_path / "x.txt").read_bytes() == rb"a\ud83db"
    value = {"the \udfff key": ["a\ud83db", 'quote " and \\ slash']}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value


def test_json_is_not_escaped(tmp_path):
    write_json(tmp_path / "x.json", {"name": "Zoë", "numbers": [1, 2.5, None, True]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert '"name": "Zoë"' in text
    assert text.endswith("}\n")
    assert json.loads(text) == {"name": "Zoë", "numbers": [1, 2.5, None, True]}


def test_values_that_are_not_json_leave_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": {1, 2}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert names(tmp_path) == ["x.json"]


# --- a folder ------------------------------------------------------------------------------------


def test_a_folder_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "made" / "too" / "folder"
    with new_folder(path) as partial:
        (partial / "a").write_text("1")
        (partial / "b").write_text("2")
        assert not path.exists()
        assert partial.parent == path.parent
    assert {name: (path / name).read_text() for name in names(path)} == {"a": "1", "b": "2"}
    assert names(path.parent) == ["folder"]


def test_an_existing_folder_is_not_overwritten(tmp_path):
    fill(tmp_path / "folder", "first")
    assert str(tmp_path / "folder") in refusal(lambda: fill(tmp_path / "folder", "second"))
    assert (tmp_path / "folder" / "a").read_text() == "first"
    (tmp_path / "file").write_text("stays")
    for path in (tmp_path / "file", tmp_path / "file" / "folder"):
        assert str(path) in refusal(lambda path=path: fill(path, "second"))
    assert (tmp_path / "file").read_text() == "stays"
    assert names(tmp_path) == ["file", "folder"]


def test_two_writers_of_one_folder_do_not_mix(tmp_path):
    def race():
        with new_folder(tmp_path / "folder") as slow:
            (slow / "a").write_text("slow")
            fill(tmp_path / "folder", "fast")
            assert (slow / "a").read_text() == "slow"

    assert str(tmp_path / "folder") in refusal(race)
    assert (tmp_path / "folder" / "a").read_text() == "fast"
    assert names(tmp_path) == ["folder"]


def test_a_partial_folder_of_a_killed_writer_is_ignored(tmp_path):
    stopped = new_folder(tmp_path / "folder")
    partial = stopped.__enter__()  # never ends
    fill(tmp_path / "folder", "1")
    assert (tmp_path / "folder" / "a").read_text() == "1"
    assert partial.name.startswith(".folder.")  # a run finds and removes it by this name
    assert partial.name.endswith(".partial")
    partial.rmdir()
    with pytest.raises(UserError):
        stopped.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "free space or choose another path"),
        (errno.EACCES, "check its permissions or choose another path"),
        (errno.ELOOP, "choose another path"),
    ],
)
def test_advice_depends_on_the_error(code: int, advice: str) -> None:
    with pytest.raises(UserError) as caught, os_errors_as_user_errors(Path("x"), "written"):
        raise OSError(code, os.strerror(code))
    assert str(caught.value) == f"x cannot be written: {os.strerror(code)}: {advice}"
