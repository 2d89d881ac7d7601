"""The real hub client against a local hub: downloads, cache, rejections and messages."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from huggingface_hub import constants

from bertqa.commands import ablate, check, explain, infer, threshold, train, verify
from bertqa.commands.flags import run_script
from bertqa.errors import UserError
from bertqa.model import hub as models
from bertqa.model.hub import commit_of, find_folder
from tests.helpers import STORIES, STORIES_V2, contents
from tests.hub_server import Files, HubServer, hub_environment, use_hub

CONFIG = {"config.json": b'{"hidden_size": 32}'}
VOCABULARY = {"vocab.txt": b"[PAD]\n[UNK]\n"}
TOKENIZER = {"tokenizer.json": b'{"version": "1.0"}', "special_tokens_map.json": b"{}"} | VOCABULARY
WEIGHTS = {"model.safetensors": bytes(range(256)) * 200}
BIN = {"pytorch_model.bin": b"a pickle"}
SHARDS = {f"model-0000{i}-of-00002.safetensors": b"%d" % i * 99 for i in (1, 2)}
INDEX = {"model.safetensors.index.json": b"[]"} | SHARDS
OTHERS = {
    "README.md": b"# a model", "tf_model.h5": b"tensors", "onnx/model.onnx": b"a graph",
    "onnx/model.safetensors": b"another's", "model-old/x.safetensors": b"another's",
}  # fmt: skip
NEEDED = CONFIG | TOKENIZER | WEIGHTS

FIND = "import sys; from bertqa.model.hub import find_folder; print(find_folder(sys.argv[1]))"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setattr(models, "weights_dir", lambda: tmp_path / "weights")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # as the client does when it fails
    with HubServer() as server:
        use_hub(monkeypatch, server.url, tmp_path / "home")
        yield server


def refusal(name: str, **options: object) -> str:
    """Return the error message."""
    with pytest.raises(UserError) as caught:
        find_folder(name, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.isprintable() and not message.endswith(".")
    return message


def start_find(name: str, environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", FIND, name],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


# --- downloads -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needed", "more"),
    [
        (NEEDED, BIN | OTHERS | INDEX),
        (CONFIG | VOCABULARY | WEIGHTS, {}),
        (NEEDED | {"decoding.json": b'{"a": 1}'}, OTHERS),
        (CONFIG | TOKENIZER | INDEX, BIN | OTHERS | {"adapter.safetensors": b"not a shard"}),
        (CONFIG | TOKENIZER | BIN, OTHERS),
    ],
    ids=["one file", "only vocab.txt", "decoding.json", "shards", "a pickle"],
)
def test_only_the_needed_files_are_downloaded(
    hub: HubServer, tmp_path: Path, needed: Files, more: Files
) -> None:
    commit = hub.add("org/bert", needed | more)
    folder = find_folder("org/bert", allow_bin=True)
    assert contents(folder) == needed
    assert sorted(hub.fetched) == sorted(needed)
    assert commit_of(folder) == commit
    assert folder.is_relative_to(tmp_path / "home" / "hub")
    assert not (tmp_path / "weights").exists()


def test_a_new_process(hub: HubServer, tmp_path: Path) -> None:
    """Only environment variables give the addresses of hub and cache, as for a user."""
    hub.add("org/bert", NEEDED | OTHERS)
    environment = hub_environment(hub.url, tmp_path / "home") | {"HOME": str(tmp_path / "user")}
    with start_find("org/bert", environment) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    folder = Path(output.strip())
    assert contents(folder) == NEEDED and folder.is_relative_to(tmp_path / "home" / "hub")
    assert not (tmp_path / "user").exists()


def test_a_warm_cache_needs_no_hub(hub: HubServer, tmp_path: Path) -> None:
    for name, files in (("bert", NEEDED), ("large", CONFIG | TOKENIZER | INDEX)):
        hub.add(name, files)
        folder = find_folder(name)
        hub.fetched.clear()
        assert find_folder(name) == folder and hub.fetched == []
        offline = hub_environment(hub.url, tmp_path / "home") | {"HF_HUB_OFFLINE": "1"}
        with start_find(name, offline) as process:
            assert process.communicate()[0].strip() == str(folder)
    hub.stop()
    assert find_folder("bert").parents[1].name == "models--bert"


def test_revisions(hub: HubServer) -> None:
    old = hub.add("bert", NEEDED)
    new = hub.add("bert", {"config.json": b'{"newer": 1}'} | TOKENIZER | BIN)
    hub.branches["v1"] = old
    assert commit_of(find_folder("bert", allow_bin=True)) == new
    for revision in ("v1", old):
        folder = find_folder("bert", revision=revision)
        assert commit_of(folder) == old and contents(folder) == NEEDED
    message = refusal("bert", revision="v2")
    assert message.startswith("--revision: ") and "'v2'" in message and f"{hub.url}/bert" in message


@pytest.mark.parametrize("source", ["variable", "file", "argument"])
def test_a_private_model_with_the_users_token(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    hub.add("org/bert", NEEDED)
    hub.token = "hf_secret"
    assert "unknown or private" in refusal("org/bert")
    if source == "variable":
        monkeypatch.setenv("HF_TOKEN", hub.token)
    elif source == "file":
        file = Path(constants.HF_TOKEN_PATH)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(hub.token)
    token = hub.token if source == "argument" else None
    assert contents(find_folder("org/bert", token=token)) == NEEDED


# --- local folders -------------------------------------------------------------------------------


def test_local_folders_are_preferred_to_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("bert", NEEDED)
    monkeypatch.chdir(tmp_path)
    ours = tmp_path / "weights" / "bert"
    ours.mkdir(parents=True)
    assert commit_of(find_folder("bert"))  # an empty folder is ignored
    (ours / "config.json").write_bytes(b"ours")
    assert find_folder("bert") == ours and commit_of(ours) is None
    message = refusal("bert", revision="v1")
    assert message.startswith("--revision: ") and str(ours) in message
    # A name that is invalid on the hub, but possible for a folder.
    ours.rename(ours.with_name("my--bert"))
    assert find_folder("my--bert") == ours.with_name("my--bert")
    (tmp_path / "my--bert").mkdir()
    assert find_folder("my--bert") == Path("my--bert")


PATHS = ["../out", "a/../../out", "/no/such/folder", "~/bert", "./bert", "a/b/c", "a/", "a/.."]
ODDITIES = ["", ".bert", "a--b", "a\\b", "bert\0", "bert base", "x" * 300, "a/" + "x" * 300]


@pytest.mark.parametrize("name", [*PATHS, *ODDITIES, "out/config.json"])
def test_a_name_that_leads_elsewhere_is_refused(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    weights = tmp_path / "weights"
    for folder in (weights, weights / "a", weights / "bert", weights / "a\\b", tmp_path / "out"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_bytes(b"not under this name")
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere" / "deep")
    before = contents(tmp_path)
    message = refusal(name)
    invalid = "folder or a model's name"
    assert repr(name) in message and (invalid in message or name == "out/config.json")
    assert contents(tmp_path) == before


# --- interrupted downloads -----------------------------------------------------------------------


def test_a_killed_download_is_rejected_and_continued(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("bert", NEEDED)
    hub.broken["model.safetensors"] = 12_345
    with start_find("bert", hub_environment(hub.url, tmp_path / "home")) as process:
        assert hub.stalled.wait(60)
        while len(list(tmp_path.glob("home/hub/models--bert/snapshots/*/*"))) < len(NEEDED) - 1:
            assert process.poll() is None
        process.kill()
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "must be a folder, or complete in" in refusal("bert")
    hub.broken.clear()
    hub.fetched.clear()
    assert contents(find_folder("bert")) == NEEDED
    assert hub.fetched == ["model.safetensors"]


def test_two_processes_at_once_download_once(hub: HubServer, tmp_path: Path) -> None:
    hub.add("bert", NEEDED)
    hub.broken["model.safetensors"] = 1000
    environment = hub_environment(hub.url, tmp_path / "home")
    with start_find("bert", environment) as first, start_find("bert", environment) as second:
        assert hub.stalled.wait(60)
        hub.go_on.set()
        found = [Path(process.communicate()[0].strip()) for process in (first, second)]
    assert found[0] == found[1]
    assert contents(found[0]) == NEEDED
    assert hub.fetched.count("model.safetensors") == 1


# --- incomplete and malicious models -------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "lacks"),
    [
        (TOKENIZER | WEIGHTS, "without config.json:"),
        (CONFIG | WEIGHTS, "without tokenizer.json or vocab.txt:"),
        (WEIGHTS, "without config.json and tokenizer.json or vocab.txt:"),
        (CONFIG | TOKENIZER | OTHERS, "without model.safetensors:"),
        (CONFIG | TOKENIZER | BIN, "pass --allow_bin if you trust"),
    ],
)
def test_what_a_model_lacks_is_named(hub: HubServer, files: Files, lacks: str) -> None:
    hub.add("org/gpt", files)
    assert lacks in refusal("org/gpt")
    assert set(hub.fetched) <= set(CONFIG)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b'{"model_type": "distilbert", "dim": 32}', "model_type must be 'bert', got 'distilbert'"),
        (
            b'{"model_type": "roberta", "hidden_size": 32}',
            "model_type must be 'bert', got 'roberta",
        ),
        (b'{"model_type": "bert", "is_decoder": true}', "is_decoder must be False, got True"),
        (b"[1]", "must be a JSON object"),
        (b"{", "must be valid JSON"),
    ],
)
@pytest.mark.parametrize("rest", [TOKENIZER | WEIGHTS, INDEX, BIN], ids=["one", "shards", "pickle"])
def test_another_model_is_rejected_before_its_weights_are_downloaded(
    hub: HubServer, rest: Files, config: bytes, words: str
) -> None:
    hub.add("org/other", {"config.json": config} | rest)
    assert words in refusal("org/other")
    assert hub.fetched == ["config.json"]
    assert words in refusal("org/other") and hub.fetched == ["config.json"]  # it is in the cache


@pytest.mark.parametrize(
    "file",
    ["../model-1.safetensors", "../../../model-1.safetensors", "/tmp/bertqa-model-1.safetensors",
     "model-/../../../../1.safetensors", "model-1\0.safetensors", "config.json/../../vocab.txt"],
)  # fmt: skip
def test_file_names_that_lead_elsewhere_write_nothing_there(
    hub: HubServer, tmp_path: Path, file: str
) -> None:
    hub.add("bert", CONFIG | TOKENIZER | INDEX | {file: b"evil"})
    with suppress(UserError):
        find_folder("bert")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["hub"]
    folder = tmp_path / "home" / "hub" / "models--bert" / "snapshots"
    assert b"evil" not in contents(folder).values()
    assert not Path("/tmp/bertqa-model-1.safetensors").exists()


# --- failures ------------------------------------------------------------------------------------


def broken(what: str, answer: tuple[int, bytes]) -> Callable[[HubServer], object]:
    return lambda hub: hub.broken.update({what: answer})


def nowhere(hub: HubServer) -> None:
    hub.stop()


def a_full_disk(hub: HubServer) -> None:
    Path(constants.HF_HUB_CACHE).parent.mkdir(parents=True)
    Path(constants.HF_HUB_CACHE).write_text("not a folder")


def offline(hub: HubServer) -> None:
    constants.HF_HUB_OFFLINE = True  # ``use_hub`` restores it


LISTING = "/api/models/org/bert"


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (lambda hub: hub.gated.add("org/bert"), ["gated", "/org/bert and log in", "hf auth login"]),
        (lambda hub: hub.repos.clear(), ["unknown or private", "check the name"]),
        (broken(LISTING, (503, b"")), ["HTTP status 503"]),
        (broken("config.json", (429, b"")), ["HTTP status 429"]),
        (broken("model.safetensors", (404, b"")), ["HTTP status 404"]),
        (broken(LISTING, (200, b"<html>Log in")), ["invalid response", "log-in page"]),
        (broken(LISTING, (200, b"[]")), ["invalid response"]),
        (broken(LISTING, (200, b'{"id": "x", "sha": "../../../x"}')), ["invalid response"]),
        (broken("config.json", (200, b"<html>")), ["invalid response"]),
        (nowhere, ["requires a connection"]),
        (offline, ["HF_HUB_OFFLINE is set"]),
        (a_full_disk, ["must fit into", "HF_HOME"]),
    ],
)
def test_a_failure_is_one_sentence(
    hub: HubServer, fail: Callable[[HubServer], object], words: list[str]
) -> None:
    hub.add("org/bert", NEEDED)
    fail(hub)
    message = refusal("org/bert")
    assert "'org/bert'" in message
    for word in words:
        assert word in message


# --- the commands --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (infer, ["--demo", "--model", "{}"]),
        (explain, ["--question", "who", "--context", "Ada", "{new}.html", "--model", "{}"]),
        (verify, ["{}"]),
        (ablate, ["{}", str(STORIES), "--output_dir", "{new}"]),
        (threshold, ["{}", str(STORIES_V2)]),
        (check, ["--train_file", str(STORIES), "--model", "{}"]),
        (train, ["--train_file", str(STORIES), "--output_dir", "{new}", "--model", "{}"]),
        (train, ["--train_file", str(STORIES), "--show", "1", "--model", "{}"]),
    ],
)
def test_every_command_takes_a_revision(
    tmp_path: Path, command: ModuleType, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [flag.format(tmp_path, new=tmp_path / "new") for flag in flags]
    assert run_script(command.main, command.parse_flags([*flags, "--revision", "v1"])) == 2
    assert f"--revision: requires a model of the hub, got 'v1' for the folder {tmp_path}" in (
        capsys.readouterr().err
    )


def test_a_file_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(UserError, match=f"must be a checkpoint folder, got the file {file}"):
        find_folder(str(file))
