"""Every refusal of the program, one case for each place that makes one, said as a script says it.

``CASES`` is a catalogue: a name, and what brings the refusal about. The places are found in the
source, so one without a case fails by its name. A new ``UserError`` needs a new case here.
"""

import argparse
import ast
import gzip
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file

from bertqa.answering import metrics
from bertqa.answering.answerer import QuestionAnswerer, load_folder
from bertqa.answering.decoding_file import read_decoding_file, write_decoding_file
from bertqa.answering.json_lines import answer_lines
from bertqa.audit.repair import save_examples
from bertqa.commands import (
    ablate,
    average,
    infer,
    question_flags,
    release,
    threshold,
    train,
    verify,
)
from bertqa.commands import explain as explain_command
from bertqa.commands.flags import overrides, run_script, settings_of
from bertqa.commands.infer_file import answer_file, answer_json_lines, check_file_flags
from bertqa.commands.question_flags import read_context
from bertqa.data.readers import load_hub_dataset, read_examples
from bertqa.data.squad import Example, check_examples, check_version, split_by_article
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import make_windows
from bertqa.errors import UserError
from bertqa.explain import attribution as inside
from bertqa.explain import comparison, verification
from bertqa.explain.differences import Differences
from bertqa.explain.explainer import explain
from bertqa.explain.hooks import Patch, intervene, record
from bertqa.files import check_new_file, read_json_object, write_text
from bertqa.model import hub
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import load_checkpoint, read_tensors, save_model
from bertqa.model.config import BertConfig, parse_config
from bertqa.model.folders import SHIPPED_MODEL
from bertqa.model.names import find_folder
from bertqa.model.packing import PackedBatch
from bertqa.report import average as means
from bertqa.report import card as cards
from bertqa.runtime import Runtime, local_runtime, select_device, select_precision
from bertqa.settings import DataSettings, DecodingSettings, TrainingSettings, WindowSettings
from bertqa.training.checkpoints import Checkpoints, Progress
from bertqa.training.job import load_data
from bertqa.training.log import Failures, TrainingLog
from bertqa.training.loop import Step
from bertqa.training.optim import make_optimizer
from bertqa.training.plan import Plan
from bertqa.training.run import Run
from bertqa.training.run_folder import RunFolder, check_free
from tests.fuzz_checkpoints import CONFIG, WORDS, read_files, write_good

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "bertqa").rglob("*.py"))
WEIGHTS, INDEX, BIN = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
TOKENIZER, CONFIG_FILE = "tokenizer.json", "config.json"
NAME, POSITIONS = "bert.embeddings.LayerNorm.bias", "bert.embeddings.position_ids"


ASKED = '{"question": "who", "context": "the quick fox"}'
THREE_TOKENS, TWO_TOKENS = (
    PackedBatch(*[torch.zeros(n, dtype=torch.int64)] * 3, (n,)) for n in (3, 2)
)  # windows


class Room:
    """What a case works with: a folder of its own, and a patch that is undone after it."""

    def __init__(self, path: Path, good: dict[str, bytes], patch: pytest.MonkeyPatch) -> None:
        self.path, self._good, self.patch = path, good, patch

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def rows(self, *rows: object, name: str = "rows.jsonl") -> Path:
        return self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def folder(self, **changed: bytes | None) -> Path:
        """A good checkpoint folder, but for files that have another content or are left out."""
        folder = self.path / "model"
        folder.mkdir(exist_ok=True)
        for name, content in {**self._good, **changed}.items():
            if content is not None:
                (folder / name).write_bytes(content)
        return folder

    def load(self, **changed: bytes | None) -> Any:
        return load_folder(self.folder(**changed), True, True)

    def json(self, name: str, change: Callable[[dict[str, Any]], object]) -> object:
        """Load a folder with one JSON file changed."""
        entries = json.loads(self._good[name])
        change(entries)
        return self.load(**{name: json.dumps(entries).encode()})

    def weights(self, change: Callable[[dict[str, Any]], object]) -> object:
        """Load a folder with other tensors."""
        tensors = {k: t.clone() for k, t in load_file(self.folder() / WEIGHTS).items()}
        change(tensors)
        save_file(tensors, self.path / "changed")
        return self.load(**{WEIGHTS: (self.path / "changed").read_bytes()})

    def shards(self, weight_map: object) -> object:
        index = json.dumps({"weight_map": weight_map}).encode()
        return self.load(**{WEIGHTS: None, "a.safetensors": self._good[WEIGHTS], INDEX: index})

    def bin(self, value: object) -> object:
        torch.save(value, self.path / "changed")
        return self.load(**{WEIGHTS: None, BIN: (self.path / "changed").read_bytes()})

    def answerer(self, **options: Any) -> QuestionAnswerer:
        return QuestionAnswerer.from_pretrained(
            self.folder(), device="cpu", precision="fp32", **options
        )

    def run(self, name: str = "run", log: str | None = '{"step": 1}\n', **changes: object) -> Path:
        """A run's folder, as far as the model card needs it."""
        description: dict[str, Any] = {
            "settings": {"model": "base", "windows_per_step": 1, "precision": "fp32"},
            "data": {"train": "1", "validation": "2", "windows": {}},
            "versions": {}, "git_commit": None, "command": [], "device": "", "processes": 1,
        }  # fmt: skip
        self.write(f"{name}/run.json", json.dumps(description | changes))
        if log is not None:
            self.write(f"{name}/log.jsonl", log)
        return self.path / name

    def release(self, *runs: Path, eval_file: Path | None = None, output: str = "new") -> None:
        flags = argparse.Namespace(
            runs=list(runs), output_dir=self.path / output, encoder="x", data="y",
            eval_file=eval_file or self.rows(ROW),
        )  # fmt: skip
        release.main(flags)

    def hub(self, error: Exception) -> None:
        with hub._said_plainly("a/b", self.path):
            raise error


def given(*flags: object) -> argparse.Namespace:
    return train.parse_flags([str(flag) for flag in flags])


def asked(*flags: object, terminal: bool = False) -> None:
    infer.check_flags(infer.parse_flags([str(flag) for flag in flags]), terminal)


def explained(*flags: object) -> None:
    asked("--question", "who", "--context", "the quick fox", *flags)


def fail(error: Exception) -> Callable[..., Any]:
    def failing(*args: object, **options: object) -> Any:
        raise error

    return failing


def error_of(kind: type[Exception], **attributes: object) -> Exception:
    """An error of the hub's client, which cannot be made without a request."""
    error = kind.__new__(kind)
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def failures(room: Room) -> Failures:
    """Of a run of one question, in the room's folder."""
    windows = make_windows(
        [Example("q", "who", "fox")], BertTokenizer.load(room.folder()), WindowSettings(16, 4)
    )
    plan = Plan(TrainingSettings(), len(windows))
    checkpoints = Checkpoints(room.path / "checkpoints")
    return Failures(RunFolder(room.path, {}), checkpoints, plan, windows, ["q"])


def settle_infinity(room: Room) -> None:
    plan, progress = Plan(TrainingSettings(), num_windows=1), Progress(step=1)
    log = TrainingLog(plan, failures(room), skips_overflow=False)
    log.add(Step(1, torch.tensor(math.inf), torch.tensor(1.0), tokens=3), progress)
    log.settle(progress)


def resume_another(room: Room) -> None:
    model = BertForQuestionAnswering(CONFIG)
    last = room.path / "checkpoints" / "step-1"
    last.parent.mkdir()
    room.folder().rename(last)
    save_file({"x": torch.ones(1)}, last / "optimizer.safetensors")
    (last / "progress.json").write_text("{}")
    Checkpoints(room.path / "checkpoints").load_last(model, make_optimizer(model, 0.0, 1e-8))


def resume_damaged(room: Room) -> None:
    last = room.path / "checkpoints" / "step-1"
    last.mkdir(parents=True)
    model = BertForQuestionAnswering(CONFIG)
    Checkpoints(room.path / "checkpoints").load_last(model, make_optimizer(model, 0.0, 1e-8))


def save_what_is_no_weight(room: Room) -> None:
    model = BertForQuestionAnswering(CONFIG)
    with torch.no_grad():
        model.head.weight.fill_(1e6)
    save_model(room.path, model)


def folders_apart(room: Room) -> None:
    room.patch.setattr(Runtime, "gather", lambda self, value: [value, 1])
    model, tokenizer, _ = room.load()
    windows = make_windows([Example("q", "who", "fox")], tokenizer, WindowSettings(16, 4))
    folder = RunFolder(room.path / "new", {})
    run = Run(
        model, tokenizer, windows, None, TrainingSettings(), local_runtime("cpu", "fp32"), folder
    )
    run.start(resume=False)


def resume_with_other_flags(room: Room) -> None:
    room.write("run.json", '{"settings": {"seed": 1}, "data": {}}')
    RunFolder(room.path, {"settings": {"seed": 2}, "data": {}}).check_same_run()


def ask_a_broken_model(room: Room) -> None:
    qa = room.answerer()
    with torch.no_grad():
        qa.model.head.weight.fill_(math.nan)
    qa("who", "the quick fox")


def ask_too_long(room: Room) -> None:
    windows = WindowSettings(16, 4)
    make_windows([Example("q", "a " * 20, "b")], BertTokenizer.load(room.folder()), windows)


def gpus(room: Room) -> None:
    room.patch.setattr(torch.cuda, "is_available", lambda: True)
    room.patch.setattr(torch.cuda, "device_count", lambda: 1)
    select_device("cuda", 1)


def unreadable(room: Room) -> None:
    path = room.write("config.json", "{}")
    room.patch.setattr(Path, "open", fail(PermissionError(13, "Permission denied")))
    read_json_object(path)


def no_memory(room: Room) -> object:
    room.patch.setattr(torch.Tensor, "float", fail(RuntimeError("can't allocate memory")))
    return room.load()


def unknown_numbers(room: Room) -> object:
    header = b'{"x": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}'
    content = len(header).to_bytes(8, "little") + header + b"\0\0\0"
    return read_tensors(room.write("x.safetensors", content))


def without_datasets(room: Room, error: Exception) -> None:
    room.patch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fail(error)))


def parquet(room: Room) -> None:
    without_datasets(room, ValueError("no footer"))
    read_examples(room.write("x.parquet", "PAR1"))


def hub_dataset(room: Room) -> None:
    without_datasets(room, ValueError("not found"))
    load_hub_dataset("squid", "train")


def overwrite(room: Room) -> None:
    room.write("out/predictions.json", "{}")
    answer_file(infer.parse_flags(["--input", "x", "--output_dir", str(room.path / "out")]))


def whole_file(*flags: object) -> None:
    given = ["--input", "a.json", "--output_dir", "none", *map(str, flags)]
    check_file_flags(infer.parse_flags(given), in_lines=False)


def first_line(room: Room) -> None:
    given = ["--input", str(room.write("in.jsonl", "{}")), "--output_dir", str(room.path / "out")]
    answer_json_lines(infer.parse_flags(given))


def lines(
    room: Room, first: str = ASKED, settings: dict[str, Any] | None = None, answers: str = ""
) -> None:
    """Answer one line, going on with what is there."""
    qa = room.answerer(windows=WindowSettings(16, 4))
    if settings is not None:
        answer_lines(qa, room.write("in.jsonl", ASKED), room.path, model="model")
        change_json(room.path / "settings.json", lambda whole: whole.update(settings))
    if answers:
        room.write("predictions.jsonl", answers)
    source = room.write("in.jsonl", first + "\n")
    answer_lines(qa, source, room.path, model="model", resume=True)


def look(room: Room, **changes: Any) -> None:
    """A window of three tokens through a model with an intervention."""
    model = room.answerer().model
    with torch.inference_mode(), intervene(model, **changes):
        model(THREE_TOKENS)


def listen(room: Room, names: Iterable[str]) -> None:
    """Record modules of a model."""
    with record(room.answerer().model, names):
        pass


def save_changed(room: Room, change: Callable[[BertForQuestionAnswering], object]) -> None:
    """Save a model after a change."""
    model = BertForQuestionAnswering(CONFIG)
    change(model)
    save_model(room.path / "changed", model)


def wrap(model: BertForQuestionAnswering) -> None:
    model.layers[0].attention.query = torch.nn.Sequential(model.layers[0].attention.query)


def dead_process(room: Room) -> None:
    room.patch.setattr("torch.distributed.barrier", fail(RuntimeError("Connection closed")))
    Runtime(torch.device("cpu"), world_size=2).wait_for_all()


def compared(*flags: object) -> None:
    verify.check_flags(verify.parse_flags(["model", *map(str, flags)]))


def taken_away(room: Room, *flags: object) -> None:
    given = ["model", "rows.json", "--output_dir", str(room.path), *map(str, flags)]
    ablate.check_flags(ablate.parse_flags(given))


def two_kinds(room: Room) -> object:
    folder = room.folder(**{"decoding.json": None})
    other = room.path / "other"
    shutil.copytree(folder, other)
    change_json(other / CONFIG_FILE, lambda e: e.update(layer_norm_eps=1e-6))
    return means.mean_of([folder, other])


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    entries = json.loads(path.read_text())
    change(entries)
    path.write_text(json.dumps(entries))


def endless_context(room: Room) -> object:
    room.patch.setattr(question_flags, "LARGEST_CONTEXT", 2**20)
    return read_context(argparse.Namespace(context_file=Path("/dev/zero")))


def no_disk(room: Room) -> None:
    """One checkpoint is whole, and for the next one there is no place."""
    (room.path / "checkpoints" / "step-1").mkdir(parents=True)
    with failures(room).while_saving(2):
        write_text(room.write("file", "") / "model", "")


def without_the_shipped_model(room: Room) -> object:
    for place in ("weights_dir", "installed_weights_dir"):
        room.patch.setattr(f"bertqa.model.folders.{place}", lambda: room.path)
    return find_folder(SHIPPED_MODEL)


def mistyped(room: Room) -> object:
    room.patch.setattr("bertqa.model.folders.weights_dir", lambda: room.path)
    room.write("tiny-bert/" + CONFIG_FILE, "{}")
    return find_folder("tiny_bert!")


def without_transformers(room: Room) -> None:
    room.patch.setitem(sys.modules, "transformers", None)
    verification.their_library()


def theirs_is_shut(room: Room) -> None:
    shut = SimpleNamespace(from_pretrained=fail(ValueError("no")))
    verification.load_theirs(SimpleNamespace(AutoModelForQuestionAnswering=shut), room.path)


def other_names(room: Room) -> None:
    model = BertForQuestionAnswering(CONFIG)
    comparison.compare_weights(Differences(1e-5, ("readable",)), model, torch.nn.Linear(1, 1))


def closed_folder(room: Room) -> None:
    room.patch.setattr(os, "access", lambda *a, **k: False)
    check_new_file(room.path / "x.json", "--repair", [".json"])


def one_kind(room: Room) -> None:
    threshold.main(threshold.parse_flags([str(room.path), str(room.rows(ROW))]))


def threshold_for_the_shipped_model(room: Room) -> None:
    room.patch.setattr("bertqa.model.folders.weights_dir", lambda: room.path)
    (room.path / SHIPPED_MODEL).mkdir()
    flags = [str(room.path / SHIPPED_MODEL), str(room.rows(ROW, UNANSWERABLE))]
    threshold.main(threshold.parse_flags(flags))


def vocab(room: Room, content: bytes, **settings: object) -> object:
    config = json.dumps(settings).encode()
    return room.load(**{TOKENIZER: None, "vocab.txt": content, "tokenizer_config.json": config})


def token(**changes: object) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    return {"id": len(WORDS), "content": "zork", "special": False, **flags, **changes}


def settings(**changes: Any) -> TrainingSettings:
    return replace(TrainingSettings(), **changes)


def read(content: str | bytes, name: str = "x.json") -> Callable[[Room], object]:
    """A case: reading a file of questions that has this content."""
    return lambda room: read_examples(room.write(name, content))


ROW = {
    "question": "Who?", "context": "Ada.", "answers": {"text": ["Ada"], "answer_start": [0]},
}  # fmt: skip
UNANSWERABLE = ROW | {"answers": {"text": [], "answer_start": []}, "is_impossible": True}
TWO = {"a": ["x"], "b": []}
VOCABULARY = "\n".join(WORDS).encode()

CASES: dict[str, Callable[[Room], object]] = {
    # answering
    "more tokens than embeddings": lambda r: r.json(
        TOKENIZER, lambda e: e["added_tokens"].append(token())
    ),
    "windows longer than the model": lambda r: r.answerer(windows=WindowSettings(100, 8)),
    "top_k 0": lambda r: r.answerer()("a", "b", top_k=0),
    "questions and contexts": lambda r: r.answerer()(["a", "b"], ["c"]),
    "no question": lambda r: r.answerer()(" ", "b"),
    # checkpoint
    "both spellings": lambda r: r.weights(
        lambda t: t.update({"bert.embeddings.LayerNorm.beta": torch.ones(12)})
    ),
    "a foreign tensor": lambda r: r.weights(lambda t: t.update(x=torch.ones(1))),
    "a missing tensor": lambda r: r.weights(lambda t: t.pop(NAME)),
    "no head": lambda r: r.weights(lambda t: t.pop("qa_outputs.bias")),
    "no floats": lambda r: r.weights(lambda t: t.update({NAME: torch.ones(12, dtype=torch.int8)})),
    "another shape": lambda r: r.weights(lambda t: t.update({NAME: torch.ones(13)})),
    "no memory": no_memory,
    "not finite": lambda r: r.weights(lambda t: t[NAME].fill_(math.nan)),
    "positions": lambda r: r.weights(lambda t: t.update({POSITIONS: torch.ones(64)})),
    # cli
    "no threshold": lambda r: overrides(
        given("--null_score_diff_threshold", "nan", "--version_2_with_negative")
    ).decoding(),
    "a threshold for nothing": lambda r: overrides(
        given("--null_score_diff_threshold", "1")
    ).decoding(),
    # config
    "no number": lambda r: r.json(CONFIG_FILE, lambda e: e.update(hidden_size="x")),
    "no rate": lambda r: BertConfig(hidden_dropout_prob=2),
    "a size that cannot be": lambda r: BertConfig(vocab_size=0),
    "another activation": lambda r: r.json(CONFIG_FILE, lambda e: e.update(hidden_act="relu")),
    "heads": lambda r: parse_config({"num_attention_heads": 7}, "config.json"),
    "one token type": lambda r: BertConfig(type_vocab_size=1),
    # decoding_file
    "keep no threshold": lambda r: write_decoding_file(r.path, math.inf, WindowSettings()),
    "a faulty decoding.json": lambda r: read_decoding_file(r.write("decoding.json", "{}").parent),
    "windows of decoding.json": lambda r: read_decoding_file(
        r.write(
            "decoding.json",
            json.dumps(
                {
                    "version_2_with_negative": True,
                    "null_score_diff_threshold": 0,
                    "max_seq_length": 9,
                    "doc_stride": 9,
                }
            ),
        ).parent
    ),
    # evaluation
    "scores that are no numbers": ask_a_broken_model,
    "no answers kept": lambda r: DecodingSettings(n_best_size=0),
    "no decoder": lambda r: DecodingSettings(decoder="beam"),
    # features
    "a negative stride": lambda r: WindowSettings(doc_stride=-1),
    "no question left": lambda r: WindowSettings(max_query_length=0),
    "no room": lambda r: WindowSettings(8, 8),
    "a question too long": ask_too_long,
    # files
    "cannot be written": lambda r: write_text(r.write("x", "") / "y", ""),
    "a file is missing": lambda r: r.load(**{CONFIG_FILE: None}),
    "a link to itself": lambda r: read_json_object((r.path / "x").symlink_to("x") or r.path / "x"),
    "a pipe": lambda r: read_json_object(os.mkfifo(r.path / "x") or r.path / "x"),
    "no rights": unreadable,
    "a giant": lambda r: read_json_object(r.write("x", "1" * 9), largest=8),
    "no JSON": lambda r: r.load(**{CONFIG_FILE: b"{"}),
    "no object": lambda r: r.load(**{CONFIG_FILE: b"[]"}),
    # hub
    "no name": lambda r: hub.find_checkpoint("../x", r.path),
    "the name of a file": lambda r: hub._check_name(
        str(r.patch.chdir(r.path) or r.write("x", "").name)
    ),
    "the place is taken": lambda r: hub.find_checkpoint("x", r.write("x/y", "").parent.parent),
    "not a whole model": lambda r: hub._choose_weights("x", set(), False),
    "only a pickle": lambda r: hub._choose_weights("x", {CONFIG_FILE, TOKENIZER, BIN}, False),
    "no index": lambda r: hub._shards("x", r.write("x", "{}"), set()),
    "a shard elsewhere": lambda r: hub._shards(
        "x", r.write("x", '{"weight_map": {"a": "../b"}}'), set()
    ),
    "gated": lambda r: r.hub(error_of(hub_errors.GatedRepoError)),
    "unknown": lambda r: r.hub(error_of(hub_errors.RepositoryNotFoundError)),
    "HTTP 500": lambda r: r.hub(
        error_of(hub_errors.HfHubHTTPError, response=SimpleNamespace(status_code=500))
    ),
    "offline": lambda r: r.hub(hub_errors.OfflineModeIsEnabled()),
    "not the hub": lambda r: r.hub(hub_errors.FileMetadataError()),
    "no place to store": lambda r: r.hub(OSError(28, "No space left on device")),
    "no connection": lambda r: r.hub(ConnectionError("refused")),
    # metrics
    "no gold by v1.1": lambda r: metrics.evaluate_v1({}, TWO),
    "no questions": lambda r: metrics.evaluate_v1({}, {}),
    "half of the scores": lambda r: metrics.evaluate_v2({}, TWO, null_scores={"a": 1.0}),
    "a null score is missing": lambda r: metrics.evaluate_v2({}, TWO, {"a": 1.0}, {}),
    "a null score is no number": lambda r: metrics.evaluate_v2(
        {}, TWO, {"a": 1.0, "b": math.nan}, {}
    ),
    # readers
    "no such file": lambda r: read_examples(r.path / "x.json"),
    "a directory": lambda r: read_examples(r.write("x.json/y", "").parent),
    "damaged gzip": read(gzip.compress(b"{}" * 99)[:-5], "x.json.gz"),
    "a loop": lambda r: read_examples(
        (r.path / "x.json").symlink_to("x.json") or r.path / "x.json"
    ),
    "an empty file": read(""),
    "not UTF-8": read(b"\xff\xff"),
    "malformed": read("{"),
    "nested": read("[" * 100_000),
    "too many digits": read("1" * 10_000),
    "no data set": read("{}"),
    "answers in CSV": read("question,context,answers\na,b,(\n", "x.csv"),
    "an open quote": read('question,context\n"a,b', "x.csv"),
    "a column twice": read("question,context,question\n", "x.csv"),
    "too many fields": read("question,context\na,b,c\n", "x.csv"),
    "packed parquet": read(gzip.compress(b"PAR1"), "x.parquet.gz"),
    "no parquet": parquet,
    "no data set of the hub": hub_dataset,
    "an unknown ending": read("x", "x.doc"),
    # release
    "a folder that is there": lambda r: r.release(output="."),
    "runs out of order": lambda r: r.release(
        r.run("a"),
        r.run("b", settings={"model": "c", "windows_per_step": 1, "precision": "fp32"}),
    ),
    # average
    "a mean that is there": lambda r: average.main(
        argparse.Namespace(models=[r.path, r.path], output_dir=r.path)
    ),
    "a mean of one twice": lambda r: means.mean_of([r.path, r.path]),
    "two runs of one name": lambda r: r.release(r.run("x/a"), r.run("y/a")),
    "a run from another": lambda r: r.release(
        r.run(settings={"model": str(r.run("z")), "windows_per_step": 1, "precision": "fp32"})
    ),
    "a mean of one": lambda r: means.mean_of([r.path]),
    "a mean with one run's threshold": lambda r: means.mean_of(
        [r.write("a/decoding.json", "{}").parent, r.path]
    ),
    "a mean of two kinds": two_kinds,
    "a mean of nothing": lambda r: means.read_average(r.write("average.json", "{}").parent),
    "questions without an answer": lambda r: r.release(r.run(), eval_file=r.rows(UNANSWERABLE)),
    "what was trained on": lambda r: r.release(
        r.run(
            data={
                "train": cards.data_fingerprint(read_examples(r.rows(ROW))),
                "validation": "",
                "windows": {},
            }
        )
    ),
    "no run": lambda r: cards.read_stage(r.path),
    "not one of ours": lambda r: cards.read_stage(r.write("run.json", "{}").parent),
    "no log": lambda r: cards.read_stage(r.run(log=None)),
    "half a log": lambda r: cards.read_stage(r.run(log="{\n{}\n")),
    "an empty log": lambda r: cards.read_stage(r.run(log="")),
    # rows
    "a wrong type": read('[{"question": 1, "context": "b"}]'),
    "no row": read("[7]"),
    "a missing key": read('[{"question": "a"}]'),
    "half a pair": read('[{"question": "\\ud800", "context": "b"}]'),
    "impossible but answered": lambda r: read_examples(r.rows(ROW | {"is_impossible": True})),
    # runs
    "a run is there": lambda r: check_free(r.write("run.json", "{}").parent, resume=False),
    "a file is there": lambda r: check_free(r.write("x", ""), resume=False),
    "something is there": lambda r: check_free(r.write("x/y", "").parent, resume=True),
    "another run": resume_with_other_flags,
    "another model's state": resume_another,
    "a damaged checkpoint": resume_damaged,
    "weights of no BERT": save_what_is_no_weight,
    "folders that are not shared": folders_apart,
    # answer_lines
    "a line that is none": lambda r: lines(r, "{}"),
    "answers without settings": lambda r: lines(
        r, answers='{"line": 1, "id": "0", "digest": ""}\n'
    ),
    "other settings": lambda r: lines(r, settings={"top_k": 7}),
    "another input": lambda r: lines(
        r, settings={}, answers='{"line": 1, "id": "x", "digest": ""}\n'
    ),
    "answers of someone else": lambda r: lines(r, settings={}, answers="mine\n"),
    # interventions, inside
    "a head that is not there": lambda r: look(r, mask_heads={(0, 99)}),
    "a head twice": lambda r: look(r, mask_heads={(0, 0)}, mean_heads={(0, 0)}),
    "a layer that is not there": lambda r: look(r, skip_layers={99}),
    "a patch of what has no tokens": lambda r: look(
        r, patch={"head": Patch(torch.zeros(1), torch.zeros(1))}
    ),
    "a patch of no token": lambda r: look(
        r, patch={"layers.0": Patch(torch.tensor([99]), torch.zeros(1, CONFIG.hidden_size))}
    ),
    "states of another width": lambda r: look(
        r, patch={"layers.0": Patch(torch.tensor([0]), torch.zeros(1, 1))}
    ),
    "embeddings of other tokens": lambda r: look(r, embeddings=torch.zeros(1, CONFIG.hidden_size)),
    "a module that is not there": lambda r: listen(r, ["layers.99"]),
    "a module that is not called": lambda r: listen(r, ["layers"]),
    "a name for a list": lambda r: listen(r, "layers.0"),
    "a wrapper that cannot be saved": lambda r: save_changed(r, wrap),
    "a forward that cannot be saved": lambda r: save_changed(
        r, lambda model: setattr(model.head, "forward", abs)
    ),
    "a weight of another shape": lambda r: save_changed(
        r, lambda model: setattr(model, "config", replace(model.config, vocab_size=7))
    ),
    "a weight that cannot be saved": lambda r: save_changed(
        r, lambda model: model.register_parameter("more", torch.nn.Parameter(torch.zeros(1)))
    ),
    "two lengths": lambda r: inside.integrated_gradients(
        r.answerer().model, THREE_TOKENS, TWO_TOKENS, 0
    ),
    "two windows": lambda r: inside.layer_effects(
        r.answerer().model, PackedBatch(*[torch.zeros(5, dtype=torch.int64)] * 3, (3, 2)), 0, 0
    ),
    "a prepacked model to explain": lambda r: explain(
        r.answerer().model, r.answerer().tokenizer, "who", "the quick fox"
    ),
    "a place outside": lambda r: inside.layer_effects(r.answerer().model, THREE_TOKENS, 3, 0),
    # mending, files
    "a copy of another kind": lambda r: save_examples(r.path / "x.txt", []),
    "a report of another kind": lambda r: check_new_file(r.path / "x", "--report", [".html"]),
    "a report that is there": lambda r: check_new_file(
        r.write("x.html", ""), "--report", [".html"]
    ),
    "a report in a file": lambda r: check_new_file(
        r.write("x", "") / "y.html", "--report", [".html"]
    ),
    "a report in a closed folder": closed_folder,
    # runtime
    "a dead process": dead_process,
    "int8": lambda r: (
        r.patch.setattr("bertqa.model.cpu_inference.can_prepack", lambda *a, **k: False)
        or QuestionAnswerer.from_pretrained("x", device="cpu", precision="int8")
    ),
    "more processes than GPUs": gpus,
    "no such device": lambda r: select_device("cuda:99"),
    "fp16": lambda r: select_precision("fp16", torch.device("cpu")),
    # squad
    "one article": lambda r: split_by_article([Example("1", "a", "b")], 10),
    "no examples": lambda r: check_examples([], str(r.path)),
    "an id twice": lambda r: check_examples([Example("1", "a", "b")] * 2, str(r.path)),
    "a blank": lambda r: check_examples([Example("1", "a", " ")], str(r.path)),
    "without an answer": lambda r: check_version([Example("1", "a", "b", ())], str(r.path), False),
    # threshold
    "one kind of question": one_kind,
    "the shipped model's threshold": threshold_for_the_shipped_model,
    # tokenization
    "one special token": lambda r: r.json(
        "tokenizer_config.json", lambda e: e.update(cls_token="[SEP]")
    ),
    "no tokenizer": lambda r: r.load(**{TOKENIZER: None}),
    "no special token": lambda r: r.json(
        "tokenizer_config.json", lambda e: e.update(cls_token="[none]")
    ),
    "no tokenizer.json": lambda r: r.load(**{TOKENIZER: b"{}"}),
    "another number": lambda r: r.json(TOKENIZER, lambda e: e["added_tokens"].append(token(id=7))),
    "another kind": lambda r: r.json(TOKENIZER, lambda e: e["model"].update(type="BPE")),
    "another normalizer": lambda r: r.json(
        TOKENIZER, lambda e: e.update(normalizer={"type": "NFC"})
    ),
    "another template": lambda r: r.json(
        TOKENIZER, lambda e: e.update(post_processor={"type": "TemplateProcessing", "single": []})
    ),
    "too many added": lambda r: r.json(
        TOKENIZER, lambda e: e["added_tokens"].append(token(content="x" * 2_000_000))
    ),
    "a long prefix": lambda r: r.json(
        TOKENIZER, lambda e: e["model"].update(continuing_subword_prefix="#" * 99)
    ),
    "long words": lambda r: r.json(
        TOKENIZER, lambda e: e["model"].update(max_input_chars_per_word=10**6)
    ),
    "a number of no token": lambda r: r.json(TOKENIZER, lambda e: e["model"]["vocab"].update(a=-1)),
    "a number twice": lambda r: r.json(TOKENIZER, lambda e: e["model"]["vocab"].update(a=8)),
    "no unknown token": lambda r: r.json(
        TOKENIZER, lambda e: e["model"].update(unk_token="[none]")
    ),
    "no text": lambda r: vocab(r, b"\xff"),
    "too many lines": lambda r: vocab(r, b"a\n" * ((1 << 20) + 1)),
    "no vocabulary": lambda r: vocab(r, b"a"),
    "no truth": lambda r: vocab(r, VOCABULARY, do_lower_case=7),
    # answering
    "the shipped model is away": without_the_shipped_model,
    "nearly the name of a model that is here": mistyped,
    # training
    "no number of steps": lambda r: settings(max_steps=0),
    "a negative decay": lambda r: settings(weight_decay=-1.0),
    "no share": lambda r: settings(warmup_ratio=2.0),
    "no schedule": lambda r: settings(lr_scheduler_type="x"),
    "no dropout": lambda r: settings(dropout=2.0),
    "a rate that grows": lambda r: settings(layerwise_lr_decay=1.5),
    "an infinite loss": settle_infinity,
    "no disk for a checkpoint": no_disk,
    # weights
    "a pickle": lambda r: load_checkpoint(r.folder(**{WEIGHTS: None, BIN: b"x"})),
    "no weights": lambda r: r.load(**{WEIGHTS: None}),
    "corrupt": lambda r: r.load(**{WEIGHTS: b"x"}),
    "numbers that torch lacks": unknown_numbers,
    "no map": lambda r: r.shards([]),
    "a name that leads elsewhere": lambda r: r.shards({NAME: "../a.safetensors"}),
    "an index that does not fit": lambda r: r.shards({NAME: "a.safetensors"}),
    "code in a pickle": lambda r: r.bin({"x": Path("x")}),
    "no dictionary": lambda r: r.bin([1]),
    "no plain tensor": lambda r: r.bin(
        {"x": torch.ones(2, dtype=torch.complex64), 1: torch.ones(1)}
    ),
    "one number many times": lambda r: r.bin({"x": torch.ones(1).expand(1 << 40)}),
    # verify, comparison, ablate
    "no bound": lambda r: compared("--bound", 0),
    "nothing to compare": lambda r: compared("--max_samples", 0),
    "a comparison is there": lambda r: compared("--markdown", r.write("x.md", "")),
    "no transformers": without_transformers,
    "nothing to compare with": theirs_is_shut,
    "names of another transformers": other_names,
    "nothing to take away": lambda r: taken_away(r, "--max_samples", 0),
    "an ablation is there": lambda r: taken_away(r.write(ablate.FIGURES, "{}") and r),
    # train.py
    "a data set and a file": lambda r: settings_of(
        given("--dataset", "a", "--train_file", "b"), DataSettings
    ),
    "validation alone": lambda r: settings_of(given("--validation_file", "b"), DataSettings),
    "validation twice": lambda r: settings_of(
        given("--train_file", "a", "--validation_file", "b", "--validation_split_percentage", 9),
        DataSettings,
    ),
    "a percentage": lambda r: settings_of(given("--validation_split_percentage", 99), DataSettings),
    "an infinite threshold": lambda r: train.check_flags(
        given("--null_score_diff_threshold", "inf")
    ),
    "no samples": lambda r: settings_of(given("--max_train_samples", 0), DataSettings),
    "nothing to show": lambda r: train.check_flags(given("--show", 0)),
    "to check and to show": lambda r: train.check_flags(given("--check", "--show", 1)),
    "to repair unchecked": lambda r: train.check_flags(given("--repair", "a.json")),
    "one file twice": lambda r: train.check_flags(
        given("--check", "--repair", "a.json", "--report", "a.json")
    ),
    "a fault in training data": lambda r: load_data(
        DataSettings(train_file=r.rows(ROW | {"answers": {"text": ["b"], "answer_start": [3]}})),
        version_2_with_negative=False,
    ),
    # infer.py
    "two ways": lambda r: asked("--demo", "--question", "a"),
    "two contexts": lambda r: asked("--question", "a", "--context", "b", "--context_file", "c"),
    "no context": lambda r: asked("--question", "a"),
    "nothing asked": lambda r: explain_command.main(explain_command.parse_flags([])),
    "a context for nothing": lambda r: asked("--demo", "--context", "a"),
    "a context alone": lambda r: asked("--context", "a"),
    "no output": lambda r: asked("--input", "a"),
    "top_k of a file": lambda r: whole_file("--top_k", 2),
    "a first line that is none": first_line,
    "to go on with a file": lambda r: whole_file("--resume"),
    "to go on and overwrite": lambda r: whole_file("--resume", "--overwrite_output_dir"),
    "to go on with a question": lambda r: asked("--demo", "--resume"),
    "offsets of nothing": lambda r: asked("--demo", "--all_offsets"),
    "no top_k": lambda r: asked("--demo", "--top_k", 0),
    "nothing to explain": lambda r: asked("--demo", "--explain"),
    "an explanation as JSON": lambda r: explained("--explain", "--json"),
    "a page that is a folder": lambda r: explained("--explain", r.path),
    "a page without a folder": lambda r: explained("--explain", r.path / "no" / "a.html"),
    "a page that is there": lambda r: explained("--explain", r.write("a.html", "mine")),
    "no context file": lambda r: read_context(argparse.Namespace(context_file=r.path / "x")),
    "a context file that is no text": lambda r: read_context(
        argparse.Namespace(context_file=r.write("x", b"\xff"))
    ),
    "a context file without an end": endless_context,
    "predictions are there": overwrite,
}


# --- the walk ------------------------------------------------------------------------------------

Site = tuple[str, int, int]  # a file, and the lines of a call


def sites_of(path: Path) -> list[Site]:
    """Where a file makes UserErrors."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return [
        (path.name, call.lineno, call.end_lineno or call.lineno)
        for call in calls
        if getattr(call.func, "id", getattr(call.func, "attr", "")) == "UserError"
    ]


SITES = [site for path in SOURCES for site in sites_of(path)]


class Walk:
    """What all the cases said, and which places said it."""

    def __init__(self) -> None:
        self.reached: set[Site] = set()
        self.exit_codes: dict[str, int] = {}
        self.said: dict[str, str] = {}
        self.folders: dict[str, Path] = {}

    def see(self, file: str, line: int) -> None:
        name = Path(file).name
        self.reached |= {site for site in SITES if site[0] == name and site[1] <= line <= site[2]}


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """Every case once, as a script would meet it."""
    good = read_files(write_good(tmp_path_factory.mktemp("errors") / "good"))
    walk, make = Walk(), UserError.__init__

    def watched(error: UserError, *words: object) -> None:
        make(error, *words)
        caller = sys._getframe(1)
        walk.see(caller.f_code.co_filename, caller.f_lineno)

    with pytest.MonkeyPatch.context() as whole:
        whole.setattr(UserError, "__init__", watched)
        whole.delenv("RANK", raising=False)
        for name, case in CASES.items():
            said, path = io.StringIO(), tmp_path_factory.mktemp("case")
            with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
                room = Room(path, good, patch)
                walk.exit_codes[name] = run_script(
                    lambda _, case=case, room=room: case(room),  # type: ignore[misc]
                    argparse.Namespace(debug=False),
                )
            walk.said[name], walk.folders[name] = said.getvalue(), path
    yield walk


@pytest.mark.parametrize("site", SITES, ids=lambda site: f"{site[0]}:{site[1]}")
def test_every_place_has_a_case(walk: Walk, site: Site) -> None:
    assert site in walk.reached, f"no case of CASES makes the UserError of {site[0]}:{site[1]}"


ADVICE = """
    accept add check choose complete convert copy correct count drop fetch fill free give
    evaluate lower move name pass put remove rename save shorten take train try unpack write
""".split()


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_is_one_sentence_and_exit_code_2(walk: Walk, name: str) -> None:
    said = walk.said[name]
    assert walk.exit_codes[name] == 2
    assert re.fullmatch(r"error: .+\n", said), said
    assert said[:-1].isprintable()
    assert len(said) < 700
    assert "Traceback" not in said


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_names_its_subject_and_what_to_do(walk: Walk, name: str) -> None:
    """A file or a flag, or what stands for it where a program calls; and a verb that helps."""
    said = walk.said[name]
    subject = r"--\w+|\.json|'|\bquestions?\b|\b[a-z]+_[a-z_]+\b|\bmodel\b|" + re.escape(
        str(walk.folders[name])
    )
    assert re.search(subject, said), said
    last = re.split(r"[:;,] ", said)
    assert any(re.search(rf"\b({'|'.join(ADVICE)})\b", part) for part in last[1:]), said


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def main(flags: argparse.Namespace) -> None:
        read_json_object(tmp_path / "x.json")

    assert run_script(main, argparse.Namespace(debug=True)) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last)")
    assert "in read_json_object" in said
    assert said.splitlines()[-1].startswith(f"error: {tmp_path / 'x.json'} is missing")


def test_a_place_without_a_case_is_found(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text("raise UserError(\n    'a'\n)\nfault = errors.UserError('b')\n")
    assert sites_of(source) == [("x.py", 1, 3), ("x.py", 4, 4)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk for it")
def test_an_output_that_is_full_is_one_sentence(tmp_path: Path) -> None:
    code = (
        "import argparse, sys; from bertqa.commands.flags import run_script; "
        "sys.exit(run_script(lambda flags: print('x' * 10000), argparse.Namespace(debug=False)))"
    )
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, encoding="utf-8",
            check=False, cwd=ROOT,
        )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr == (
        "error: the standard output cannot be written: No space left on device; free some\n"
    )
