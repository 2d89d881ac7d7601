"""Windows from the cache equal windows made afresh, and what is broken there is made again."""

import dataclasses
import shutil
import threading
from pathlib import Path

import datasets
import pytest
import torch

import bertqa.data.window_cache as feature_cache
from bertqa.data.batching import collate
from bertqa.data.labels import make_labelled_windows
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example, data_fingerprint
from bertqa.data.tokenization import BertTokenizer, TokenTable
from bertqa.data.window_cache import cached_windows, default_cache_dir
from bertqa.errors import UserError
from bertqa.settings import WindowSettings
from tests.helpers import STORIES, STORIES_V2, write_tokenizer

SIZES = WindowSettings(160, 30, 40)
FILES = (
    "contexts-bounds.arrow",
    "contexts.arrow",
    "examples.arrow",
    "questions-bounds.arrow",
    "questions.arrow",
    "windows.arrow",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def examples():
    return read_examples(STORIES)[:30] + read_examples(STORIES_V2)[:10]


@pytest.fixture
def no_work(monkeypatch):
    """Call it, and from then on making windows fails."""

    def forbid():
        def fail(*_, **__):
            pytest.fail("windows are made again")

        monkeypatch.setattr(feature_cache, "make_labelled_windows", fail)
        monkeypatch.setattr(BertTokenizer, "encode", fail)

    return forbid


@pytest.fixture
def counted(monkeypatch):
    """A list that grows by one each time that windows are made."""
    calls = []
    monkeypatch.setattr(
        feature_cache,
        "make_labelled_windows",
        lambda *args: calls.append(1) or make_labelled_windows(*args),
    )
    return calls


def columns(value, prefix=""):
    """All tensors and numbers of a LabelledWindows."""
    found = {}
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if isinstance(content, TokenTable):
            found |= columns(content, f"{field.name}.")
        else:
            found[prefix + field.name] = content
    return found


def assert_equal_windows(ours, expected):
    ours, expected = columns(ours), columns(expected)
    assert ours.keys() == expected.keys()
    assert len(ours) == 2 * 4 + 8 + 2
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert ours[name].dtype == value.dtype, name
            assert torch.equal(ours[name], value), name
        else:
            assert ours[name] == value, name


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- the second time -----------------------------------------------------------------------------


def test_the_second_time_nothing_is_tokenised(tmp_path, examples, tokenizer, no_work):
    expected = make_labelled_windows(examples, tokenizer, SIZES)
    first = cached_windows(examples, tokenizer, SIZES, tmp_path / "made")
    assert_equal_windows(first, expected)
    no_work()
    # Equal examples that are other objects, in a tuple, are the same data.
    again = tuple(dataclasses.replace(example) for example in examples)
    for chosen in (examples, again):
        second = cached_windows(chosen, tokenizer, SIZES, tmp_path / "made")
        assert_equal_windows(second, expected)
    (folder,) = (tmp_path / "made").iterdir()
    assert tuple(names(folder)) == FILES
    # They work as those made afresh do.
    chosen = torch.arange(len(expected)).flip(0)
    ours, theirs = collate(second, chosen), collate(expected, chosen)
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert ours.lengths == theirs.lengths


@pytest.mark.parametrize(
    "odd",
    [
        [Example("a", "", "")],
        [Example("a", "who", "\u200b"), Example("b", "", "\u200b", ())],
        [Example("lone \ud800", "\ud800 who", "the \udfff river", ("\udfff",), (4,))],
    ],
)
def test_odd_examples(tmp_path, tokenizer, no_work, odd):
    expected = make_labelled_windows(odd, tokenizer, SIZES)
    assert_equal_windows(cached_windows(odd, tokenizer, SIZES, tmp_path), expected)
    no_work()
    assert_equal_windows(cached_windows(odd, tokenizer, SIZES, tmp_path), expected)


def test_a_tokenizer_of_another_folder_is_the_same(tmp_path, examples, tokenizer, no_work):
    expected = cached_windows(examples, tokenizer, SIZES, tmp_path / "cache")
    tokenizer.save(tmp_path / "saved")
    again = BertTokenizer.load(tmp_path / "saved")
    no_work()
    assert_equal_windows(cached_windows(examples, again, SIZES, tmp_path / "cache"), expected)


# --- the key -------------------------------------------------------------------------------------

PLAIN = Example("a", "who, when", "the river", ("the",), (0,))
CHANGED = [
    [dataclasses.replace(PLAIN, id="b")],
    [dataclasses.replace(PLAIN, question="who when")],
    [dataclasses.replace(PLAIN, question="Who, when")],
    [dataclasses.replace(PLAIN, context="the river ")],
    [dataclasses.replace(PLAIN, answers=("the river",))],
    [dataclasses.replace(PLAIN, answers=("the", "river"), answer_starts=(0, 4))],
    [dataclasses.replace(PLAIN, answers=("r",), answer_starts=(4,))],
    [dataclasses.replace(PLAIN, answers=("r",), answer_starts=(8,))],
    [dataclasses.replace(PLAIN, answer_starts=())],
    [dataclasses.replace(PLAIN, answers=(), answer_starts=())],
    [dataclasses.replace(PLAIN, answers=None, answer_starts=())],
    [PLAIN, PLAIN],
    [PLAIN, dataclasses.replace(PLAIN, id="b")],
    [dataclasses.replace(PLAIN, id="b"), PLAIN],
    [],
    # Fields whose texts run together.
    [Example("a", "who", "le town")],
    [Example("a", "whole", " town")],
    [Example("aw", "ho", "le town")],
    [Example("a", "', '", "', '")],
    [Example("a", "', '', '", "'")],
    # Half a surrogate pair, and what it could be taken for.
    [Example("a", "\ud800", "x")],
    [Example("a", "\\ud800", "x")],
    [Example("a", "\ufffd", "x")],
]


def test_other_data_have_another_fingerprint():
    found = [data_fingerprint(examples) for examples in [[PLAIN], *CHANGED]]
    assert len(set(found)) == len(CHANGED) + 1
    assert all(len(text) == 32 and int(text, 16) >= 0 for text in found)
    assert data_fingerprint([dataclasses.replace(PLAIN)]) == found[0]


def test_whatever_changes_is_made_again(tmp_path, tokenizer, counted):
    cased = write_tokenizer(tmp_path / "cased", lowercase=False)
    cache = tmp_path / "cache"
    cases = [
        ([PLAIN], tokenizer, SIZES),
        ([PLAIN, PLAIN], tokenizer, SIZES),
        ([dataclasses.replace(PLAIN, context="the river.")], tokenizer, SIZES),
        ([PLAIN], cased, SIZES),
        *(
            ([PLAIN], tokenizer, sizes)
            for sizes in (
                WindowSettings(161, 30, 40),
                WindowSettings(160, 31, 40),
                WindowSettings(160, 30, 41),
                WindowSettings(160, 30, None),
            )
        ),
    ]
    for number, case in enumerate(cases, start=1):
        windows = cached_windows(*case, cache)
        assert_equal_windows(windows, make_labelled_windows(*case))
        assert len(counted) == number
    for case in cases:
        assert_equal_windows(cached_windows(*case, cache), make_labelled_windows(*case))
    assert len(counted) == len(cases)
    assert len(names(cache)) == len(cases)


@pytest.mark.parametrize("maker", ["windows.py", "labels.py", "tokenization.py"])
def test_edited_code_is_another_key(tmp_path, tokenizer, counted, monkeypatch, maker):
    package = shutil.copytree(Path(feature_cache.__file__).parent, tmp_path / "package")
    monkeypatch.setattr(feature_cache, "__file__", str(package / "window_cache.py"))
    feature_cache._code.cache_clear()
    cached_windows([PLAIN], tokenizer, SIZES, tmp_path / "cache")
    with (package / maker).open("a") as file:
        file.write("# another rule\n")
    feature_cache._code.cache_clear()
    cached_windows([PLAIN], tokenizer, SIZES, tmp_path / "cache")
    feature_cache._code.cache_clear()
    assert len(counted) == 2


def test_the_usual_place(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/some/where")
    assert default_cache_dir() == Path("/some/where/bertqa-features")


# --- what is broken ------------------------------------------------------------------------------


def _half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _headless(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 4])


def _empty(path):
    path.write_bytes(b"")


def _garbage(path):
    path.write_bytes(b"no arrow " * 99)


def _folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [_half, _headless, _empty, _garbage, _folder, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_made_again(tmp_path, examples, tokenizer, no_work, spoil, name):
    expected = cached_windows(examples, tokenizer, SIZES, tmp_path)
    (folder,) = tmp_path.iterdir()
    spoil(folder / name)
    assert_equal_windows(cached_windows(examples, tokenizer, SIZES, tmp_path), expected)
    assert tuple(names(folder)) == FILES
    assert names(tmp_path) == [folder.name]
    no_work()
    assert_equal_windows(cached_windows(examples, tokenizer, SIZES, tmp_path), expected)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_between_messages_is_made_again(tmp_path, tokenizer, counted, name):
    # Arrow itself takes it for an empty table.
    expected = cached_windows([PLAIN], tokenizer, SIZES, tmp_path)
    (folder,) = tmp_path.iterdir()
    whole = (folder / name).read_bytes()
    schema = 8 + int.from_bytes(whole[4:8], "little")
    (folder / name).write_bytes(whole[:schema])
    assert len(datasets.Dataset.from_file(str(folder / name))) == 0
    assert_equal_windows(cached_windows([PLAIN], tokenizer, SIZES, tmp_path), expected)
    assert len(counted) == 2


def test_files_of_other_columns_are_made_again(tmp_path, examples, tokenizer):
    expected = cached_windows(examples, tokenizer, SIZES, tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "windows.arrow").write_bytes((folder / "examples.arrow").read_bytes())
    assert_equal_windows(cached_windows(examples, tokenizer, SIZES, tmp_path), expected)


def test_a_file_in_place_of_the_folder(tmp_path, examples, tokenizer):
    expected = cached_windows(examples, tokenizer, SIZES, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / names(tmp_path / "a")[0]).write_text("in the way")
    # It cannot be replaced by a folder, but the windows are there.
    assert_equal_windows(cached_windows(examples, tokenizer, SIZES, tmp_path / "b"), expected)


def test_a_cache_that_cannot_be_written(tmp_path, examples, tokenizer):
    (tmp_path / "file").write_text("stays")
    for cache in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UserError) as caught:
            cached_windows(examples, tokenizer, SIZES, cache)
        assert str(cache) in str(caught.value)
        assert "cannot be written" in str(caught.value)
        assert str(caught.value).endswith("by the variable HF_DATASETS_CACHE")
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "stays"


def test_a_full_disk_leaves_nothing(tmp_path, examples, tokenizer, monkeypatch):
    write = feature_cache._write

    def full(folder, name, table):
        write(folder, name, table)
        if name == "examples":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache, "_write", full)
    with pytest.raises(UserError, match="No space left on device"):
        cached_windows(examples, tokenizer, SIZES, tmp_path)
    assert names(tmp_path) == []


def test_a_question_that_is_too_long_is_refused_each_time(tmp_path, tokenizer):
    for _ in range(2):
        with pytest.raises(UserError, match="the question of 'a' has 99 tokens"):
            cached_windows(
                [Example("a", "who " * 99, "the")], tokenizer, WindowSettings(64, 16), tmp_path
            )
    assert names(tmp_path) == []


# --- several at once -----------------------------------------------------------------------------


def test_another_was_faster(tmp_path, examples, tokenizer, monkeypatch, no_work):
    expected = make_labelled_windows(examples, tokenizer, SIZES)

    def slow(*args):
        monkeypatch.setattr(feature_cache, "make_labelled_windows", make_labelled_windows)
        fast = cached_windows(*args, tmp_path)  # while we were at work
        assert_equal_windows(fast, expected)
        return make_labelled_windows(*args)

    monkeypatch.setattr(feature_cache, "make_labelled_windows", slow)
    assert_equal_windows(cached_windows(examples, tokenizer, SIZES, tmp_path), expected)
    assert len(names(tmp_path)) == 1
    no_work()
    assert_equal_windows(cached_windows(examples, tokenizer, SIZES, tmp_path), expected)


def test_many_writers_at_once(tmp_path, examples, tokenizer, monkeypatch, no_work):
    expected = make_labelled_windows(examples, tokenizer, SIZES)
    together = threading.Barrier(4, timeout=60)
    monkeypatch.setattr(
        feature_cache, "make_labelled_windows", lambda *_: together.wait() * 0 or expected
    )
    found, faults = [], []

    def work():
        try:
            found.append(cached_windows(examples, tokenizer, SIZES, tmp_path))
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(found) == 4
    assert len(names(tmp_path)) == 1
    no_work()
    assert_equal_windows(cached_windows(examples, tokenizer, SIZES, tmp_path), expected)


def test_a_mapped_cache_may_be_removed(tmp_path, examples, tokenizer):
    expected = make_labelled_windows(examples, tokenizer, SIZES)
    cached_windows(examples, tokenizer, SIZES, tmp_path)
    mapped = cached_windows(examples, tokenizer, SIZES, tmp_path)
    (folder,) = tmp_path.iterdir()
    for name in FILES:
        (folder / name).unlink()
    assert_equal_windows(mapped, expected)
