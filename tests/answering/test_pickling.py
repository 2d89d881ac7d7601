"""An answerer in other processes: forked, spawned or unpickled."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets.fingerprint import Hasher
from torch import nn

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.errors import UserError
from bertqa.model.cpu_inference import can_prepack
from bertqa.runtime import adapt_to_fork, local_runtime
from bertqa.settings import DecodingSettings, WindowSettings
from tests.commands.world import rewrite
from tests.helpers import write_checkpoint

ROOT = Path(__file__).parents[2]
CONTEXT = "Ada built the port of Quill in the town; the river ran past the ship."
WHO = "Who built the port?"
LINEAR = "bert.encoder.layer.0.output.dense.weight"


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "tiny")


def load(folder, **options):
    return QuestionAnswerer.from_pretrained(
        folder, **({"device": "cpu", "precision": "fp32"} | options)
    )


def run(script, *arguments):
    """Run a script in a new process with two threads, and return the printed words."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,  # in case a child hangs
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# --- forked processes ----------------------------------------------------------------------------

# The shipped model: matrix products of a tiny one are too small for several threads.
FORKS = """
import multiprocessing, sys
import torch
from bertqa import Example, QuestionAnswerer

before, *precisions = sys.argv[1:]
context = "Ada built the port of Quill in 1931."
answerers = [
    QuestionAnswerer.from_pretrained("minilm-l6-squad", device="cpu", precision=precision)
    for precision in precisions
]
if before == "asked":
    for qa in answerers:
        qa("Who built it?", context)

def work(qa):
    torch.set_num_threads(2)
    print(qa(["Who built the port?"] * 20, context)[7]["answer"].replace(" ", "_"))
    torch.set_num_threads(2)
    prediction, = qa.answer([Example("1", "When was it built?", context)])
    print(prediction.text, torch.get_num_threads())
    own = QuestionAnswerer.from_pretrained("minilm-l6-squad", device="cpu", precision="fp32")
    print(own("Who built the port?", context)["answer"])

for qa in answerers:
    child = multiprocessing.get_context("fork").Process(target=work, args=[qa])
    child.start()
    child.join(120)
    print("hangs" if child.is_alive() else child.exitcode, flush=True)
    child.kill()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("before", ["asked", "not asked"])
def test_a_forked_child_answers_with_one_thread(before):
    cpu = torch.device("cpu")
    ready = {
        "fp32": True,
        "bf16": can_prepack(cpu, torch.bfloat16),
        "int8": can_prepack(cpu, int8=True),
    }
    precisions = [precision for precision, is_ready in ready.items() if is_ready]
    seen = run(FORKS, before, *precisions)
    assert seen == ["Ada", "1931", "1", "Ada", "0"] * len(precisions)


LOADS_IN_CHILD = """
import multiprocessing
import torch
import bertqa

def work():
    qa = bertqa.QuestionAnswerer.from_pretrained("minilm-l6-squad", device="cpu", precision="fp32")
    print(qa("Who built it?", "Ada built the port. " * 20)["answer"])

torch.ones(600, 600) @ torch.ones(600, 600)  # starts threads that the child will not have
child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join(120)
print("hangs" if child.is_alive() else child.exitcode, flush=True)
child.kill()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_can_load_the_first_model():
    assert run(LOADS_IN_CHILD) == ["Ada", "0"]


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1", torch.device("cuda", 0)])
def test_a_gpu_is_rejected_in_a_forked_child(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    adapt_to_fork(device)  # this process was not forked
    monkeypatch.setattr(os, "getpid", lambda: 0)
    with pytest.raises(UserError, match=r"must be cpu in a forked process .*spawn"):
        adapt_to_fork(device)
    threads = torch.get_num_threads()
    assert local_runtime("cpu").device.type == "cpu"
    torch.set_num_threads(threads)


# --- pickled and copied --------------------------------------------------------------------------

ARRIVE = """
import pickle, sys
from pathlib import Path

qa = pickle.loads(Path(sys.argv[1]).read_bytes())
print(qa(sys.argv[2], sys.argv[3]))
"""


def test_an_answerer_is_pickled_in_a_few_hundred_bytes(folder, tmp_path):
    qa = load(
        folder, windows=WindowSettings(96, 24), decoding=DecodingSettings(max_answer_length=3)
    )
    content = pickle.dumps(qa)
    assert len(content) < 700
    (tmp_path / "qa.pickle").write_bytes(content)
    printed = run(ARRIVE, tmp_path / "qa.pickle", WHO, CONTEXT)
    assert printed == str(qa(WHO, CONTEXT)).split()


def test_the_current_settings_are_pickled(folder):
    qa = load(folder)
    qa.decoding = replace(qa.decoding, version_2_with_negative=True, null_score_diff_threshold=-1e9)
    assert pickle.loads(pickle.dumps(qa))(WHO, CONTEXT)["answer"] == ""


def test_the_same_pickle_is_loaded_once(folder):
    """A pool sends the same function with each task."""
    content = pickle.dumps(load(folder))
    first, second = pickle.loads(content), pickle.loads(content)
    assert first.model is second.model
    first.model.head.weight.data += 1
    third = pickle.loads(content)
    assert third.model is not first.model
    assert third(WHO, CONTEXT) == load(folder)(WHO, CONTEXT)


def test_the_working_directory_can_change(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    qa = load(folder.name)
    monkeypatch.chdir(folder)
    assert copy.deepcopy(qa)(WHO, CONTEXT) == qa(WHO, CONTEXT)
    assert pickle.dumps(qa) == pickle.dumps(load(folder))


def test_a_copy_is_independent(folder):
    qa = load(folder)
    expected = qa(WHO, CONTEXT, top_k=5)
    copied = copy.deepcopy(qa)
    copied.model.embeddings.norm.weight.data.neg_()
    assert copied(WHO, CONTEXT, top_k=5) != expected
    assert qa(WHO, CONTEXT, top_k=5) == expected


class Named(QuestionAnswerer):
    """A subclass with its own attribute."""

    name = ""


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda qa: pickle.loads(pickle.dumps(qa))])
def test_attributes_of_subclasses_are_pickled_and_copied(folder, copied):
    qa = Named.from_pretrained(folder, device="cpu", precision="fp32")
    qa.name, qa.seen = "port", ["a"]
    found = copied(qa)
    assert (type(found), found.name, found.seen) == (Named, "port", ["a"])
    assert found.seen is not qa.seen
    assert found(WHO, CONTEXT) == qa(WHO, CONTEXT)
    assert not hasattr(copied(load(folder)), "seen")


def test_the_fingerprint_depends_on_model_and_settings(folder):
    fingerprint = Hasher.hash(load(folder))
    assert Hasher.hash(load(folder)) == fingerprint
    assert Hasher.hash(pickle.loads(pickle.dumps(load(folder)))) == fingerprint
    assert Hasher.hash(load(folder, decoding=DecodingSettings(n_best_size=3))) != fingerprint
    write_checkpoint(folder, seed=1)
    assert Hasher.hash(load(folder)) != fingerprint


MAPS = """
import sys
from datasets import Dataset
from bertqa import QuestionAnswerer

def answered():
    qa = QuestionAnswerer.from_pretrained(sys.argv[1], device="cpu", precision="fp32")
    work = lambda row: {"answer": qa(row["question"], row["context"])["answer"]}
    return rows.map(work, num_proc=2)

rows = Dataset.from_dict({"question": [sys.argv[2]] * 6, "context": [sys.argv[3]] * 6})
rows.save_to_disk(sys.argv[4])
rows = Dataset.load_from_disk(sys.argv[4])
first = answered()
print(first._fingerprint == answered()._fingerprint, *set(first["answer"]))
"""


def test_datasets_map_with_two_processes_and_from_its_cache(folder, tmp_path):
    printed = run(MAPS, folder, WHO, CONTEXT, tmp_path / "rows")
    assert printed == ["True", *load(folder)(WHO, CONTEXT)["answer"].split()]


# --- rejected ------------------------------------------------------------------------------------


def scale_embeddings(model):
    model.embeddings.norm.weight.data *= 2


def add_under_no_grad(model):
    with torch.no_grad():
        model.head.weight.add_(1)


def replace_a_layer(model):
    model.layers[1].feed_forward.up = nn.Linear(36, 37)


def hook(model):
    model.layers[0].register_forward_hook(lambda module, args, output: None)


def wrap_forward(model):
    model.embeddings.forward = model.embeddings.forward


@pytest.mark.parametrize(
    "change", [scale_embeddings, add_under_no_grad, replace_a_layer, hook, wrap_forward]
)
def test_a_model_changed_in_memory_is_not_pickled(folder, change):
    qa = load(folder)
    change(qa.model)
    with pytest.raises(UserError, match=r"unchanged since loading .* changed in memory: save it"):
        pickle.dumps(qa)
    with pytest.raises(UserError, match="changed in memory"):
        copy.deepcopy(qa)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_eval_does_not_prevent_pickling(folder, precision):
    qa = QuestionAnswerer.from_pretrained(folder, device="cpu", precision=precision)
    qa.model.eval()
    assert pickle.loads(pickle.dumps(qa)).folder == qa.folder


@pytest.mark.parametrize("part", ["model", "tokenizer", "runtime"])
def test_an_answerer_with_a_replaced_part_is_not_pickled(folder, part):
    qa, other = load(folder), load(folder)
    setattr(qa, part, getattr(other, part))
    with pytest.raises(UserError, match="changed in memory"):
        pickle.dumps(qa)


def test_a_model_without_a_folder_is_not_pickled(folder):
    qa = load(folder)
    with pytest.raises(UserError, match=r"must be loaded with from_pretrained .* save_model"):
        pickle.dumps(QuestionAnswerer(qa.model, qa.tokenizer, runtime=qa.runtime))


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt", "decoding.json"])
def test_files_changed_after_loading_are_detected(folder, name):
    qa = load(folder)
    path = folder / name
    path.write_bytes((path.read_bytes() if path.exists() else b"{}") + b" ")
    with pytest.raises(UserError, match=r"the files of .* must be unchanged since loading"):
        pickle.dumps(qa)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_touched_files_are_accepted(folder, precision):
    qa = load(folder, precision=precision)
    before = pickle.dumps(qa)
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    assert pickle.dumps(qa) == before
    # Changed numbers of one layer, in a file of the same size.
    rewrite(folder / "model.safetensors", lambda tensors: tensors[LINEAR][0].mul_(2))
    with pytest.raises(UserError, match=r"the files of .* must be unchanged since loading"):
        pickle.dumps(qa)


def test_another_model_at_unpickling_is_rejected(folder):
    content = pickle.dumps(load(folder))
    write_checkpoint(folder, seed=1)
    with pytest.raises(UserError, match=r"must contain the model .* got other files"):
        pickle.loads(content)


def test_a_missing_model_at_unpickling_is_named(folder, monkeypatch):
    content = pickle.dumps(load(folder))
    shutil.rmtree(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=str(folder)):
        pickle.loads(content)
