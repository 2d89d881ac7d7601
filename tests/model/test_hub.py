"""The real hub client against a hub on this machine: what is fetched, kept, refused and said."""

import importlib.util
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from bertqa.errors import UserError
from bertqa.model.hub import find_checkpoint
from tests.hub_server import HubServer, hub_environment, use_hub

CONFIG = {"config.json": b'{"hidden_size": 32}'}
TOKENIZER = {
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"do_lower_case": true}',
    "vocab.txt": b"[PAD]\n[UNK]\n",
    "special_tokens_map.json": b"{}",
}
WEIGHTS = {"model.safetensors": bytes(range(256)) * 200}
BIN = {"pytorch_model.bin": b"a pickle"}
UNNEEDED = {"README.md": b"# a model", "tf_model.h5": b"tensors", "onnx/model.onnx": b"a graph"}
NEEDED = CONFIG | TOKENIZER | WEIGHTS

FIND = """
import sys
from pathlib import Path
from bertqa.model.hub import find_checkpoint
print(find_checkpoint(sys.argv[1], Path(sys.argv[2])))
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(monkeypatch, server.url, tmp_path / "home")
        yield server


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits for seconds between its attempts."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def index_of(*shards: object) -> dict[str, bytes]:
    weight_map = {f"layer.{i}.weight": shard for i, shard in enumerate(shards)}
    return {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}


def refusal(name: str, weights: Path, *, caused: bool = True, allow_bin: bool = False) -> str:
    """What the user is told: one sentence with the name in it."""
    with pytest.raises(UserError) as caught:
        find_checkpoint(name, weights, allow_bin=allow_bin)
    said = str(caught.value)
    assert repr(name) in said
    assert not re.search(r"\n|\.[ )]|\.$", said)
    assert (caught.value.__cause__ is not None) == caused
    return said


def start_find(name: str, weights: Path, environment: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", FIND, name, str(weights)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- what is fetched -----------------------------------------------------------------------------


def test_only_the_needed_files_are_fetched(hub: HubServer, weights: Path) -> None:
    commit = hub.add_repo("org/bert", NEEDED | BIN | UNNEEDED)
    folder = find_checkpoint("org/bert", weights)
    assert folder == weights / "org" / "bert"
    assert contents(weights) == {f"org/bert/{file}": content for file, content in NEEDED.items()}
    assert sorted(path.name for path in weights.iterdir()) == ["org"]
    assert not (folder / ".cache").exists()
    assert sorted(hub.fetched) == sorted(NEEDED)
    paths = [path for _, path in hub.requests if "/resolve/" in path]
    assert paths and all(f"/resolve/{commit}/" in path for path in paths)


@pytest.mark.parametrize("tokenizer", ["tokenizer.json", "vocab.txt"])
def test_one_tokenizer_file_is_enough(hub: HubServer, weights: Path, tokenizer: str) -> None:
    files = CONFIG | {tokenizer: TOKENIZER[tokenizer]} | WEIGHTS
    hub.add_repo("bert", files)
    assert contents(find_checkpoint("bert", weights)) == files


def test_the_shards_that_the_index_names(hub: HubServer, weights: Path) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": b"%d" % i * 99 for i in (1, 2)}
    files = CONFIG | TOKENIZER | index_of(*shards, *shards) | shards
    hub.add_repo("bert", files | {"model-of-another-day.safetensors": b"old"} | BIN)
    assert contents(find_checkpoint("bert", weights, allow_bin=True)) == files
    assert sorted(hub.fetched) == sorted(files)


def test_one_safetensors_file_goes_before_shards_and_bin(hub: HubServer, weights: Path) -> None:
    hub.add_repo("bert", NEEDED | index_of("a.safetensors") | {"a.safetensors": b""} | BIN)
    assert contents(find_checkpoint("bert", weights, allow_bin=True)) == NEEDED


def test_a_bin_is_refused_unless_allowed(hub: HubServer, weights: Path) -> None:
    files = CONFIG | TOKENIZER | BIN
    hub.add_repo("bert", files)
    said = refusal("bert", weights, caused=False)
    assert "pickle" in said and "--allow_bin" in said
    assert hub.fetched == [] and not weights.exists()
    assert contents(find_checkpoint("bert", weights, allow_bin=True)) == files


def test_a_renamed_model_comes_under_the_name_asked_for(hub: HubServer, weights: Path) -> None:
    hub.add_repo("google/bert", NEEDED)
    hub.redirect("bert", "google/bert")
    assert find_checkpoint("bert", weights) == weights / "bert"
    assert contents(weights / "bert") == NEEDED


def test_the_second_call_makes_no_request(hub: HubServer, weights: Path) -> None:
    hub.add_repo("org/bert", NEEDED)
    first = find_checkpoint("org/bert", weights)
    hub.requests.clear()
    assert find_checkpoint("org/bert", weights) == first
    assert hub.requests == []


# --- what is here already ------------------------------------------------------------------------


def test_folders_here_go_before_the_hub(
    hub: HubServer, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("bert", NEEDED)
    monkeypatch.chdir(tmp_path)
    ours = weights / "bert"
    ours.mkdir(parents=True)
    (ours / "config.json").write_bytes(b"ours")
    assert find_checkpoint("bert", weights) == ours
    # A name that the hub could not have, but that somebody gave to a folder.
    ours.rename(weights / "my--bert")
    assert find_checkpoint("my--bert", weights) == weights / "my--bert"
    (tmp_path / "my--bert").mkdir()
    assert find_checkpoint("my--bert", weights) == Path("my--bert")
    assert find_checkpoint(str(tmp_path / "my--bert"), weights) == tmp_path / "my--bert"
    assert hub.requests == []


def test_an_empty_folder_is_filled(hub: HubServer, weights: Path) -> None:
    hub.add_repo("bert", NEEDED)
    (weights / "bert").mkdir(parents=True)
    assert contents(find_checkpoint("bert", weights)) == NEEDED


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_checkpoint_stays(hub: HubServer, weights: Path, kind: str) -> None:
    hub.add_repo("bert", NEEDED)
    kept = weights / "bert" / "notes.txt" if kind == "folder" else weights / "bert"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    assert "no config.json" in refusal("bert", weights, caused=False)
    assert kept.read_text() == "mine"
    assert hub.requests == []


# --- names that are none -------------------------------------------------------------------------


PATHS = ["../out", "a/../../out", "/no/such/folder", "~/bert", "./bert", "a/b/c", "a/", "a/.."]
ODDITIES = ["", ".bert", "a--b", "a\\b", "bert\0", "bert base", "x" * 300, "a/" + "x" * 300]


@pytest.mark.parametrize("name", [*PATHS, *ODDITIES])
def test_a_name_that_leads_elsewhere_is_refused(
    hub: HubServer, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for folder in (weights / "a", weights / "bert", weights / "a\\b", tmp_path / "out"):
        folder.mkdir(parents=True)
    for folder in (tmp_path / "out", tmp_path, *weights.iterdir(), weights):
        (folder / "config.json").write_bytes(b"not under this name")
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere" / "deep")
    before = contents(tmp_path)
    assert "neither a checkpoint folder nor" in refusal(name, weights)
    assert hub.requests == []
    assert contents(tmp_path) == before


def test_a_file_is_no_name(
    hub: HubServer, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(b"tensors")
    assert "is a file" in refusal("model.safetensors", weights, caused=False)
    assert hub.requests == []


# --- interrupted downloads -----------------------------------------------------------------------


def test_a_killed_download_is_no_checkpoint_and_goes_on(
    hub: HubServer, weights: Path, tmp_path: Path
) -> None:
    hub.add_repo("bert", NEEDED)
    hub.stall("model.safetensors", after=1000)
    process = start_find("bert", weights, hub_environment(hub.url, tmp_path / "home"))
    with process:
        assert hub.stalled.wait(60)
        process.kill()
    assert not (weights / "bert").exists()
    assert all(path.name.startswith(".") for path in weights.iterdir())
    hub.fetched.clear()
    assert contents(find_checkpoint("bert", weights)) == NEEDED
    assert hub.fetched == ["model.safetensors"]
    assert [path.name for path in weights.iterdir()] == ["bert"]


def test_a_broken_connection_is_taken_up_where_it_broke(
    hub: HubServer, weights: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: None
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.add_repo("bert", NEEDED)
    hub.break_off("model.safetensors", after=12_345)
    assert contents(find_checkpoint("bert", weights)) == NEEDED
    assert hub.ranges == ["bytes=12000-"]


def test_a_lost_connection_leaves_no_checkpoint(
    hub: HubServer, weights: Path, no_waiting: None
) -> None:
    hub.add_repo("org/bert", NEEDED)
    hub.break_off("model.safetensors", after=0, times=None)
    said = refusal("org/bert", weights)
    assert "no working connection" in said and str(weights / "org" / "bert") in said
    assert all(path.name.startswith(".") for path in weights.iterdir())
    hub.heal()
    hub.fetched.clear()
    assert contents(find_checkpoint("org/bert", weights)) == NEEDED
    assert hub.fetched == ["model.safetensors"]


def test_a_new_commit_is_not_mixed_with_the_rest_of_the_old(
    hub: HubServer, weights: Path, no_waiting: None
) -> None:
    hub.add_repo("bert", NEEDED)
    hub.break_off("model.safetensors", after=0, times=None)
    refusal("bert", weights)
    hub.heal()
    newer = {"config.json": b"newer", "vocab.txt": b"[PAD]"} | WEIGHTS
    hub.add_repo("bert", newer)
    assert contents(find_checkpoint("bert", weights)) == newer
    assert [path.name for path in weights.iterdir()] == ["bert"]


def test_two_at_once_download_once(hub: HubServer, weights: Path) -> None:
    hub.add_repo("bert", NEEDED)
    hub.stall("model.safetensors", after=1000)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(find_checkpoint("bert", weights)))
        for _ in range(2)
    ]
    threads[0].start()
    assert hub.stalled.wait(60)
    threads[1].start()
    while hub.requests.count(("GET", "/api/models/bert")) < 2:
        time.sleep(0.01)
    time.sleep(0.1)  # for the second to do what it should not
    hub.release()
    for thread in threads:
        thread.join()
    assert found == [weights / "bert"] * 2
    assert sorted(hub.fetched) == sorted(NEEDED)
    assert contents(weights) == {f"bert/{file}": content for file, content in NEEDED.items()}


# --- models that are no checkpoints --------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "lacks"),
    [
        (TOKENIZER | WEIGHTS, "lacks config.json:"),
        (CONFIG | WEIGHTS, "lacks tokenizer.json or vocab.txt:"),
        (CONFIG | TOKENIZER | UNNEEDED, "lacks model.safetensors or model.safetensors.index.json:"),
        ({"vocab.txt": b""}, "lacks config.json and model.safetensors or"),
    ],
)
def test_what_a_model_lacks_is_named(
    hub: HubServer, weights: Path, files: dict[str, bytes], lacks: str
) -> None:
    hub.add_repo("org/gpt", files)
    assert lacks in refusal("org/gpt", weights, caused=False, allow_bin=True)
    assert hub.fetched == [] and not weights.exists()


ELSEWHERE = ["../x.safetensors", "sub/x.safetensors", "/x.safetensors", "C:x.safetensors"]
NO_SHARDS = ["..safetensors", "x..safetensors", ".x.safetensors", "config.json", *BIN]


@pytest.mark.parametrize("shard", [*ELSEWHERE, "..\\x.safetensors", *NO_SHARDS])
def test_a_shard_is_a_plain_file_name(
    hub: HubServer, weights: Path, tmp_path: Path, shard: str
) -> None:
    good = "model-1.safetensors"
    files = CONFIG | TOKENIZER | index_of(good, shard) | BIN
    hub.add_repo("bert", {shard: b"evil", good: b"tensors"} | files)
    assert repr(shard) in refusal("bert", weights, caused=False)
    assert shard not in set(hub.fetched) - set(CONFIG)
    assert good not in hub.fetched
    assert b"evil" not in contents(tmp_path).values()


def test_a_shard_that_the_model_lacks(hub: HubServer, weights: Path) -> None:
    hub.add_repo("bert", CONFIG | TOKENIZER | index_of("model-1.safetensors"))
    assert "'model-1.safetensors'" in refusal("bert", weights, caused=False)


@pytest.mark.parametrize(
    "index", [b"{", b"\xff", b"[]", b"{}", b'{"weight_map": ["a"]}', b'{"weight_map": {"a": 7}}']
)
def test_an_index_that_is_none(hub: HubServer, weights: Path, index: bytes) -> None:
    hub.add_repo("bert", CONFIG | TOKENIZER | {"model.safetensors.index.json": index})
    assert "no weight_map" in refusal("bert", weights)


def test_an_index_of_nothing(hub: HubServer, weights: Path) -> None:
    hub.add_repo("bert", CONFIG | TOKENIZER | index_of())
    assert "names no shard" in refusal("bert", weights, caused=False)


# --- a hub that refuses, and no hub --------------------------------------------------------------


def test_an_unknown_model(hub: HubServer, weights: Path) -> None:
    said = refusal("org/bret", weights)
    assert "unknown or private" in said and "check the name" in said
    assert not weights.exists()


def test_a_gated_model(hub: HubServer, weights: Path) -> None:
    hub.add_repo("org/bert", NEEDED, gated=True)
    said = refusal("org/bert", weights)
    assert "gated" in said and f"{hub.url}/org/bert" in said and "hf auth login" in said
    assert not (weights / "org").exists()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_a_status_instead_of_the_listing(hub: HubServer, weights: Path, status: int) -> None:
    hub.add_repo("bert", NEEDED)
    hub.fail_listing("bert", status)
    assert f"HTTP status {status}" in refusal("bert", weights)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [401, 404, 429, 503])
def test_a_status_instead_of_a_file(
    hub: HubServer, weights: Path, status: int, method: str, no_waiting: None
) -> None:
    hub.add_repo("bert", NEEDED)
    hub.fail_file("model.safetensors", status, method=method)
    said = refusal("bert", weights)
    assert f"HTTP status {status}" in said and str(weights / "bert") in said
    assert not (weights / "bert").exists()


@pytest.mark.parametrize(
    "body", [b"<html>Log in", b"<html>\xe9", b"{}", b"[]", b'{"id": "bert", "sha": "../../x"}']
)
def test_an_answer_that_is_not_a_hubs(hub: HubServer, weights: Path, body: bytes) -> None:
    hub.add_repo("bert", NEEDED)
    hub.fail_listing("bert", 200, body)
    said = refusal("bert", weights, caused=b"sha" not in body)
    assert "does not come from a hub" in said and hub.url in said
    assert not weights.exists()


def test_a_hub_that_does_not_answer(
    hub: HubServer, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("bert", NEEDED)
    hub.stall("/api/models/bert")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    assert "no working connection" in refusal("bert", weights)


def test_a_file_of_another_size(hub: HubServer, weights: Path) -> None:
    hub.add_repo("bert", NEEDED)
    hub.fail_file("model.safetensors", 200)
    assert "no working connection" in refusal("bert", weights)
    assert not (weights / "bert").exists()


def test_a_file_without_a_commit(hub: HubServer, weights: Path) -> None:
    hub.add_repo("bert", NEEDED)
    hub.fail_file("model.safetensors", 200, method="HEAD")
    assert "does not come from a hub" in refusal("bert", weights)
    assert not (weights / "bert").exists()


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:{port}", "http://no-such-host.invalid"])
def test_no_hub(
    hub: HubServer,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    endpoint = endpoint.format(port=port)
    use_hub(monkeypatch, endpoint, tmp_path / "home")
    said = refusal("org/bert", weights)
    assert said.startswith(f"there is no working connection to {endpoint}")
    assert f"put its checkpoint folder at {weights / 'org' / 'bert'}, or pass a folder" in said
    assert not weights.exists()


def test_a_storage_that_cannot_be_reached(hub: HubServer, weights: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("hf_xet") is None:  # not imported: that alone writes a log file
        pytest.skip("hf_xet is not installed")
    hub.add_repo("bert", NEEDED)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        hub.xet_storage = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    environment = hub_environment(hub.url, tmp_path / "home") | {
        "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1",
        "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
    }
    with start_find("bert", weights, environment) as process:
        _, errors = process.communicate()
    said = errors.strip().splitlines()[-1]
    assert said.startswith("bertqa.errors.UserError: there is no working connection")
    assert hub.xet_storage in said
    assert not (weights / "bert").exists()


# --- a disk that refuses -------------------------------------------------------------------------


def test_weights_cannot_go_into_a_file(hub: HubServer, weights: Path) -> None:
    hub.add_repo("bert", NEEDED)
    weights.write_text("not a folder")
    said = refusal("bert", weights)
    assert f"cannot be stored at {weights / 'bert'}: Not a directory" in said


def test_a_file_larger_than_the_disk_takes(hub: HubServer, weights: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    hub.add_repo("bert", NEEDED)
    with subprocess.Popen(
        [sys.executable, "-c", FIND, "bert", str(weights)],
        env=hub_environment(hub.url, tmp_path / "home") | {"PYTHONDONTWRITEBYTECODE": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    ) as process:
        _, errors = process.communicate()
    said = errors.strip().splitlines()[-1]
    assert said.startswith("bertqa.errors.UserError: model 'bert' cannot be stored")
    assert "File too large" in said
    assert not (weights / "bert").exists()


# --- as the user has it --------------------------------------------------------------------------


def test_a_process_of_its_own(hub: HubServer, weights: Path, tmp_path: Path) -> None:
    """From HF_ENDPOINT to the folder, with a progress bar, and nothing written elsewhere."""
    hub.add_repo("org/bert", NEEDED | UNNEEDED)
    user = tmp_path / "user"
    environment = hub_environment(hub.url, tmp_path / "home") | {
        "HOME": str(user),
        "TQDM_POSITION": "-1",  # bars for a stderr that is no terminal, too
    }
    with start_find("org/bert", weights, environment) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.splitlines() == [str(weights / "org" / "bert")]
    assert contents(weights / "org" / "bert") == NEEDED
    assert "model.safetensors: 100%" in errors
    assert not user.exists()
    assert not (tmp_path / "home" / "hub").exists()


def test_offline_is_offline(hub: HubServer, weights: Path, tmp_path: Path) -> None:
    hub.add_repo("bert", NEEDED)
    environment = hub_environment(hub.url, tmp_path / "home") | {"HF_HUB_OFFLINE": "1"}
    with start_find("bert", weights, environment) as process:
        _, errors = process.communicate()
    assert errors.strip().splitlines()[-1] == (
        "bertqa.errors.UserError: there is no connection for model 'bert', as HF_HUB_OFFLINE is "
        f"set: put its checkpoint folder at {weights / 'bert'}, or pass a folder"
    )
    (weights / "bert").mkdir(parents=True)
    (weights / "bert" / "config.json").write_bytes(b"{}")
    with start_find("bert", weights, environment) as process:
        output, _ = process.communicate()
    assert output.strip() == str(weights / "bert")
    assert hub.requests == []
