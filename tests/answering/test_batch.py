"""AnswerBatch: columns, one process, several processes, and the installed engines."""

import os
import pickle
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher

from bertqa import AnswerBatch, QuestionAnswerer, UserError
from bertqa.settings import Overrides
from tests.helpers import write_checkpoint

ROOT = Path(__file__).parents[2]
QUESTIONS = ["Who built the port?", "What ran past the ship?", "Where was it?"] * 4
CONTEXTS = [f"Ada built the port {n} of Quill; the river ran past the ship." for n in range(12)]
COLUMNS = {"question": QUESTIONS, "context": CONTEXTS, "year": list(range(12))}
KEYS = ("answer", "score", "start", "end")


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "tiny")


def batch(folder, **options):
    return AnswerBatch(folder, **({"device": "cpu", "precision": "fp32"} | options))


@pytest.fixture
def wanted(folder):
    """Return the answers of a QuestionAnswerer as columns."""
    qa = QuestionAnswerer.from_pretrained(folder, device="cpu", precision="fp32")
    entries = qa(QUESTIONS, CONTEXTS)
    return {key: [entry[key] for entry in entries] for key in KEYS}


def close(columns):
    """Return columns that compare equal to the same answers from other batches."""
    return columns | {"score": pytest.approx(columns["score"], rel=1e-4)}


# --- columns -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple, lambda c: np.array(c, dtype=object), np.array])
def test_columns_have_the_answers_of_an_answerer(folder, wanted, kind):
    found = batch(folder)({name: kind(column) for name, column in COLUMNS.items()})
    assert found == wanted
    assert {type(value) for value in found["start"] + found["end"]} == {int}
    assert batch(folder)({"question": [], "context": []}) == {key: [] for key in KEYS}


def test_the_names_of_the_columns_can_be_set(folder, wanted):
    answers = batch(folder, question="q", context="text")
    assert answers({"q": QUESTIONS, "text": CONTEXTS}) == wanted


def test_top_k_gives_lists(folder, wanted):
    found = batch(folder, top_k=30)(COLUMNS)
    assert [values[0] for values in found["answer"]] == wanted["answer"]
    assert {len(values) for values in found["score"]} == {30}
    assert all(values == sorted(values, reverse=True) for values in found["score"])


def test_null_score_is_the_probability_of_no_answer(folder):
    silent = Overrides(version_2_with_negative=True, null_score_diff_threshold=-1e9)
    found = batch(folder, overrides=silent)(COLUMNS)
    assert set(found["answer"]) == {""}
    assert found["null_score"] == found["score"]
    assert set(batch(folder)(COLUMNS)) == set(KEYS)


# --- processes -----------------------------------------------------------------------------------


def test_the_working_directory_can_change(folder, wanted, monkeypatch):
    monkeypatch.chdir(folder.parent)
    answers = batch(folder.name)
    monkeypatch.chdir(folder)
    assert answers(COLUMNS) == wanted


def test_a_pickled_batch_is_small_and_loads_its_model_lazily(folder, wanted, monkeypatch):
    content = pickle.dumps(batch(folder))
    assert len(content) < 700
    loaded = []
    load = QuestionAnswerer.from_pretrained
    monkeypatch.setattr(
        QuestionAnswerer, "from_pretrained", lambda *a, **o: loaded.append(1) or load(*a, **o)
    )
    several = [pickle.loads(content) for _ in range(3)]
    assert not loaded
    write_checkpoint(folder.parent / "other", seed=3)
    batch(folder.parent / "other")(COLUMNS)  # another model, so that this one is not cached
    assert [answers(COLUMNS) for answers in several] == [wanted] * 3
    assert len(loaded) == 2


def test_the_fingerprint_depends_on_model_and_settings(folder):
    fingerprint = Hasher.hash(batch(folder))
    assert Hasher.hash(pickle.loads(pickle.dumps(batch(folder)))) == fingerprint
    assert Hasher.hash(batch(folder, top_k=2)) != fingerprint
    write_checkpoint(folder, seed=1)
    assert Hasher.hash(batch(folder)) != fingerprint


@pytest.mark.parametrize("processes", [None, 2])
def test_datasets_map(folder, wanted, processes, tmp_path):
    Dataset.from_dict(COLUMNS).save_to_disk(tmp_path / "rows")
    rows = Dataset.load_from_disk(tmp_path / "rows")
    options = {"batched": True, "batch_size": 5, "num_proc": processes}
    first = rows.map(batch(folder), **options)
    assert {key: list(first[key]) for key in KEYS} == close(wanted)
    assert list(first["year"]) == COLUMNS["year"]
    again = rows.map(batch(folder), **options)
    assert again.cache_files == first.cache_files != []


SPAWN = """
import multiprocessing, pickle, sys
from itertools import product
from pathlib import Path

if __name__ == "__main__":
    answers, parts = pickle.loads(Path(sys.argv[1]).read_bytes())
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            found = pool.map(answers, parts)
        print([answer for part in found for answer in part["answer"]])
"""


def test_process_pools_give_the_same_answers(folder, wanted, tmp_path):
    parts = [
        {"question": QUESTIONS[n : n + 3], "context": CONTEXTS[n : n + 3]} for n in range(0, 12, 3)
    ]
    (tmp_path / "work").write_bytes(pickle.dumps((batch(folder, threads=1), parts)))
    (tmp_path / "spawn.py").write_text(SPAWN)
    done = subprocess.run(
        [sys.executable, tmp_path / "spawn.py", tmp_path / "work"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.splitlines() == [str(wanted["answer"])] * 2, done.stderr


def test_the_number_of_threads_applies_while_answering(folder, monkeypatch):
    seen = []
    answer = QuestionAnswerer.answer
    monkeypatch.setattr(
        QuestionAnswerer,
        "answer",
        lambda qa, examples: seen.append(torch.get_num_threads()) or answer(qa, examples),
    )
    torch.set_num_threads(1)
    batch(folder, threads=3)(COLUMNS)
    batch(folder)(COLUMNS)
    assert [*seen, torch.get_num_threads()] == [3, 1, 1]


def test_ray_gives_the_same_answers(folder, wanted):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False)
    answers = batch(folder)
    try:
        rows = ray.data.from_items(
            [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]
        )
        mapped = rows.map_batches(lambda rows: {**rows, **answers(rows)}, batch_size=5)
        found = sorted(mapped.take_all(), key=lambda row: row["year"])
    finally:
        ray.shutdown()
    assert {key: [row[key] for row in found] for key in KEYS} == close(wanted)


def test_spark_gives_the_same_answers(folder, wanted, monkeypatch):
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    sql = pytest.importorskip("pyspark.sql")
    pandas = pytest.importorskip("pandas")
    answers = batch(folder, threads=1)

    def work(frames):
        for frame in frames:
            yield frame.assign(**answers(frame))

    spark = sql.SparkSession.builder.master("local[2]").getOrCreate()
    try:
        rows = spark.createDataFrame(pandas.DataFrame(COLUMNS))
        schema = "question string, context string, year long, "
        schema += "answer string, score double, start long, end long"
        found = rows.mapInPandas(work, schema).orderBy("year").toPandas()
    finally:
        spark.stop()
    assert {key: list(found[key]) for key in KEYS} == close(wanted)


# --- bad input -----------------------------------------------------------------------------------


def test_invalid_batches_are_rejected(folder):
    answers = batch(folder)
    with pytest.raises(UserError, match=r"must have the column 'context', got \['question'\]"):
        answers({"question": ["a"]})
    for column, text in product(("question", "context"), (None, "", " ")):
        rows = {"question": QUESTIONS[:3], "context": CONTEXTS[:3]}
        rows[column] = [*rows[column][:2], text]
        message = f"{column} at index 2 must be .*, got {re.escape(repr(text))}"
        with pytest.raises(UserError, match=message):
            answers(rows)
    with pytest.raises(UserError, match="got 1 question and 2 contexts"):
        answers({"question": ["a"], "context": ["a", "b"]})
    for name, value in product(("top_k", "threads"), (0, "3", 1.5)):
        with pytest.raises(UserError, match=f"^{name} must be a whole number of at least 1, got"):
            batch(folder, **{name: value})
    for column in (None, "a", 5):
        with pytest.raises(UserError, match="the column 'question' must be a list of texts, got"):
            answers({"question": column, "context": ["a"]})
    for given in ({"n_best_size": 3}, None):
        with pytest.raises(UserError, match="overrides must be of the class Overrides, got"):
            batch(folder, overrides=given)
    with pytest.raises(UserError, match=r"precision must be one of auto, .*, got 16"):
        batch(folder, precision=16)
    with pytest.raises(UserError, match="model: "):
        batch(folder.parent / "none such")


def test_another_model_in_the_worker_is_rejected(folder):
    answers = batch(folder)
    write_checkpoint(folder, seed=1)
    with pytest.raises(UserError, match="must contain the model that was pickled as"):
        answers(COLUMNS)
