"""``bertqa.pipeline`` against that of transformers 4.57: equal answers, and rejected input."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import datasets
import pytest
import torch
from torch.utils.data import IterableDataset
from tqdm import tqdm
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForQuestionAnswering
from transformers import BertForQuestionAnswering as TheirModel

import bertqa
from bertqa import Example, QuestionAnswerer, UserError, pipeline
from bertqa.answering import answerer, pipeline_loading
from bertqa.answering.decoding_file import read_decoding_file, write_decoding_file
from bertqa.files import DECODING_FILE
from bertqa.settings import DecodingSettings, WindowSettings
from tests.answering.pipeline_457 import (
    ASKED,
    CALLS,
    FORMS,
    RECORDED,
    SEEDS,
    SHIPPED,
    SHORT,
    SINGLE,
    STORY,
    Call,
    Rows,
    digest,
    rows,
    write_model,
)

RECORD = json.loads(RECORDED.read_text(encoding="utf-8"))
CPU = {"device": -1, "dtype": torch.float32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    parent = tmp_path_factory.mktemp("pipeline")
    return {name: write_model(parent / name, name) for name in SEEDS} | {"shipped": SHIPPED}


@pytest.fixture(scope="module")
def made(folders):
    """Return a function that makes pipelines, each loaded once."""
    kept = {}

    def make(model, construction=None, scores="transformers"):
        construction = construction or {}
        key = f"{model} {construction} {scores}"
        if key not in kept:
            kept[key] = pipeline(
                "question-answering", model=folders[model], scores=scores, **CPU, **construction
            )
        return kept[key]

    return make


@pytest.fixture(scope="module")
def qa(made):
    return made("lower", scores="bertqa")


def make_object(question, context):
    return SimpleNamespace(question_text=question, context_text=context)


# --- the answers of transformers 4.57 ------------------------------------------------------------


def test_the_record_is_of_these_models_and_calls(folders):
    """Otherwise record again, see pipeline_457.py."""
    assert RECORD["transformers"].startswith("4.57.")
    assert RECORD["digest"] == digest(folders)
    assert len(RECORD["answers"]) == len(CALLS) >= 300


def is_one(recorded):
    return not isinstance(recorded[0], list) if recorded else False


def without_fillers(recorded):
    """Drop the spans of score 0 with which 4.57 fills up a list: they end before their start."""
    if is_one(recorded):
        return recorded
    real = [answer for answer in recorded if answer[0] > 0]
    return real[0] if len(real) == 1 else real


def assert_same(ours, recorded, context):
    """Compare the result of one question: type, offsets, scores."""
    recorded = without_fillers(recorded)
    assert isinstance(ours, dict) == is_one(recorded)
    pairs = [(ours, recorded)] if is_one(recorded) else zip(ours, recorded, strict=True)
    for answer, (score, start, end) in pairs:
        assert (answer["start"], answer["end"]) == (start, end)
        assert answer["answer"] == context[start:end]
        assert answer["score"] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("number", range(len(CALLS)), ids=[*map(str, CALLS)])
@pytest.mark.filterwarnings("ignore:topk")
def test_scores_of_transformers(made, number):
    call, recorded = CALLS[number], RECORD["answers"][number]
    answers = call.run(made(call.model, call.construction), make_object)
    is_lazy = call.form in ("generator", "data set")
    if call.form in SINGLE or (len(call.questions) == 1 and not is_lazy):
        assert_same(answers, recorded, call.contexts[0])
        return
    contexts = [call.contexts[0]] * 3 if call.form == "shared" else call.contexts
    assert len(answers) == len(recorded) == len(call.questions)
    for answer, expected, context in zip(answers, recorded, contexts, strict=True):
        assert_same(answer, expected, context)


# --- input formats -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("top_k", [1, 3])
def test_every_input_format_gives_the_same_answers(made, qa, form, top_k):
    parameters = {} if form in ("predict", "transform") else {"top_k": top_k}
    expected = [qa(question=q, context=STORY, **parameters) for q in SHORT]
    answers = Call("lower", form, SHORT, [STORY] * 3, parameters).run(qa, make_object)
    given = [answers] if form in SINGLE else answers
    assert len(given) == (1 if form in SINGLE else 3)
    for answer, wanted in zip(given, expected, strict=False):
        assert_close(answer, wanted)


def assert_close(answer, wanted):
    pairs = zip(answer, wanted, strict=True) if isinstance(wanted, list) else [(answer, wanted)]
    for ours, theirs in pairs:
        assert ours == theirs | {"score": pytest.approx(theirs["score"], rel=1e-4)}


def test_one_question_in_a_list_gives_a_dictionary(qa):
    answer = qa(question=SHORT[:1], context=STORY)
    assert list(answer) == ["score", "start", "end", "answer"]
    assert [type(value) for value in answer.values()] == [float, int, int, str]
    assert answer == qa([{"question": SHORT[0], "context": STORY}])
    assert qa([]) == [] == qa(question=[], context=STORY)


def test_datasets_and_their_columns_are_accepted(qa):
    given = [r | {"id": f"q{i}", "answers": []} for i, r in enumerate(rows(SHORT, [STORY] * 3))]
    table = datasets.Dataset.from_list(given)
    wanted = qa(question=SHORT, context=STORY)
    assert qa(given) == wanted == qa(table)
    assert qa(question=table["question"], context=table["context"]) == wanted
    assert qa([Example("a", q, STORY) for q in SHORT]) == wanted
    assert qa(SHORT, [STORY] * 3) == wanted == qa(iter(given)) == qa(map(dict, given))
    with pytest.raises(UserError, match="'q7'"):
        qa({"id": "q7", "question": "who " * 500, "context": STORY})


def test_a_generator_is_read_lazily(qa):
    read = []

    def asked():
        for row in rows(SHORT, [STORY] * 3):
            read.append(row)
            yield row

    answers = iter(qa(asked()))
    assert read == []
    next(answers)
    assert len(read) == 1
    assert len([*answers]) == 2
    ahead = iter(qa(asked(), batch_size=3))
    next(ahead)
    assert len(read) == 6


def test_a_torch_dataset_has_a_length_and_can_be_read_again(qa):
    answers = qa(Rows(rows(SHORT, [STORY] * 3)))
    assert len(answers) == 3
    bar = tqdm(answers, disable=None)
    assert bar.total == 3
    assert [*bar] == [*answers] != []

    class Stream(IterableDataset):
        def __iter__(self):
            yield from rows(SHORT, [STORY] * 3)

    stream = qa(Stream())
    assert [*stream] == [*answers]
    with pytest.raises(TypeError):
        len(stream)


# --- parameters ----------------------------------------------------------------------------------


def test_the_default_scores_are_probabilities_over_words(made):
    """Each answer occurs once, and the probabilities sum to 1."""
    qa, text = made("lower", scores="bertqa"), "Ida mapped a marsh"
    every = qa(question=SHORT[0], context=text, top_k=200, max_answer_len=100)
    found = {answer["answer"] for answer in every}
    words = text.split()
    spans = {" ".join(words[i:j]) for i in range(4) for j in range(i + 1, 5)}
    assert found == spans and len(every) == 10
    assert math.fsum(answer["score"] for answer in every) == pytest.approx(1, abs=1e-5)
    for top_k in range(2, 11):  # whatever the number of word pieces
        some = qa(question=SHORT[0], context=text, top_k=top_k, max_answer_len=100)
        assert_close(some, every[:top_k])
    assert_close(qa(question=SHORT[0], context=text, max_answer_len=100), every[0])
    pieces = qa(
        question=SHORT[0], context=text, top_k=200, max_answer_len=100, align_to_words=False
    )
    assert len(pieces) > 50
    assert math.fsum(answer["score"] for answer in pieces) == pytest.approx(1, abs=1e-5)


def test_handle_impossible_answer_includes_no_answer(qa):
    with_null = qa(question=SHORT[0], context=STORY, top_k=500, handle_impossible_answer=True)
    assert [a for a in with_null if not a["answer"]] == [
        {"score": pytest.approx(with_null[-1]["score"], abs=1), "start": 0, "end": 0, "answer": ""}
    ]
    assert all(a["answer"] for a in qa(question=SHORT[0], context=STORY, top_k=500))
    assert qa(question=SHORT[0], context=" ") == {
        "score": 1.0, "start": 0, "end": 0, "answer": "",
    }  # fmt: skip


def test_a_long_question_with_a_short_context_is_not_truncated(made):
    """Its last word changes the answer; with a longer context, the question is truncated."""
    theirs, short = made("lower"), "the river in a town"
    sizes = {"max_seq_len": 60, "doc_stride": 20, "max_question_len": 64}
    same = {
        context: theirs("who " * 40 + "river", context, **sizes)
        == theirs("who " * 40 + "ship", context, **sizes)
        for context in (short, short * 9)
    }
    assert same == {short: False, short * 9: True}


def test_the_default_maximum_is_fifteen_tokens(made, qa):
    text = "who a the of in to was is what how many where when did " * 3
    longest = max(len(a["answer"].split()) for a in qa(SHORT[0], text, top_k=600))
    assert longest == 15
    assert (
        max(len(a["answer"].split()) for a in qa(SHORT[0], text, max_answer_len=2, top_k=90)) == 2
    )


def test_padding_and_workers_have_no_effect(qa):
    wanted = qa(question=SHORT, context=STORY)
    for parameters in ({"padding": "max_length"}, {"num_workers": 2}, {"batch_size": 7}):
        assert qa(question=SHORT, context=STORY, **parameters) == wanted


def test_parameters_of_the_constructor_are_defaults_of_the_calls(folders, qa):
    settled = pipeline(model=folders["lower"], top_k=3, max_seq_len=60, doc_stride=9, **CPU)
    assert settled(SHORT[0], STORY) == qa(SHORT[0], STORY, top_k=3, max_seq_len=60, doc_stride=9)
    assert settled(SHORT[0], STORY, top_k=1) == settled(SHORT[0], STORY)[0]
    assert settled(SHORT[0], STORY, top_k=None) == settled(SHORT[0], STORY)


def test_model_max_length_limits_the_default_windows(tmp_path, made):
    folder = write_model(tmp_path / "model", "lower")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 60}))
    limited = pipeline(model=folder, scores="transformers", **CPU)
    wanted = made("lower")(SHORT[0], STORY, max_seq_len=60, doc_stride=30)
    assert limited(SHORT[0], STORY) == wanted != made("lower")(SHORT[0], STORY)
    assert limited(SHORT[0], STORY, max_seq_len=384) == made("lower")(SHORT[0], STORY)


def test_topk_is_deprecated_for_top_k(qa):
    with pytest.warns(UserWarning, match="top_k") as caught:
        answers = qa(SHORT[0], STORY, topk=2)
    assert caught[0].filename == __file__
    assert answers == qa(SHORT[0], STORY, top_k=2)


def test_max_question_len_truncates_questions(made, qa):
    long = SHORT[0] + " " + "where " * 400
    assert qa(long, STORY, max_question_len=9) == qa(long[:100], STORY, max_question_len=9)
    for each in (qa, made("lower")):
        with pytest.raises(UserError, match="max_question_len 64"):
            each(long, STORY)
    assert made("lower")(long, STORY, max_question_len=9)["answer"]  # truncated to fit


def test_threshold_and_windows_of_a_decoding_file_apply(folders, tmp_path):
    first = pipeline(model=folders["lower"], **CPU)
    first.save_pretrained(tmp_path / "own")
    silent = DecodingSettings(version_2_with_negative=True, null_score_diff_threshold=-1000.0)
    write_decoding_file(tmp_path / "own", silent, WindowSettings(70, 20), 0.25)
    qa = pipeline(model=tmp_path / "own", **CPU)
    assert qa(SHORT[0], STORY, handle_impossible_answer=True)["answer"] == ""
    found = qa(SHORT[0], STORY)
    assert found == first(SHORT[0], STORY, max_seq_len=70, doc_stride=20) and found["answer"]
    qa.save_pretrained(tmp_path / "again")
    kept = (tmp_path / "own" / DECODING_FILE).read_text()
    assert (tmp_path / "again" / DECODING_FILE).read_text() == kept
    qa.answerer.decoding = replace(silent, null_score_diff_threshold=0.0)  # chosen for no share
    qa.save_pretrained(tmp_path / "other")
    stored = json.loads((tmp_path / "other" / DECODING_FILE).read_text())
    assert stored == json.loads(kept) | {
        "null_score_diff_threshold": 0.0, "unanswerable_share": None,
    }  # fmt: skip


def test_a_temperature_applies_to_the_scores_of_bertqa_only(folders, tmp_path):
    first = pipeline(model=folders["lower"], **CPU)
    first.save_pretrained(tmp_path / "own")
    usual = first.answerer.windows
    write_decoding_file(tmp_path / "own", DecodingSettings(temperature=3.0), usual)
    flat, plain = pipeline(model=tmp_path / "own", **CPU), {"top_k": 5, "max_answer_len": 30}
    expected, found = first(SHORT[0], STORY, **plain), flat(SHORT[0], STORY, **plain)
    assert [entry["answer"] for entry in found] == [entry["answer"] for entry in expected]
    assert found[0]["score"] < expected[0]["score"]
    theirs = [
        pipeline(model=folder, scores="transformers", **CPU)(SHORT[0], STORY, **plain)
        for folder in (folders["lower"], tmp_path / "own")
    ]
    assert theirs[0] == theirs[1]
    flat.save_pretrained(tmp_path / "again")
    assert read_decoding_file(tmp_path / "again")[1] == DecodingSettings(temperature=3.0)


@pytest.mark.parametrize("impossible", [False, True])
def test_an_answer_below_the_score_threshold_becomes_no_answer(folders, impossible):
    qa = pipeline(model=folders["lower"], **CPU)
    asked = {"handle_impossible_answer": impossible, "top_k": 500}
    plain = qa(SHORT[0], STORY, **asked)
    best = next(entry for entry in plain if entry["answer"])
    unsure = best["score"] * 1.01
    found = qa(SHORT[0], STORY, score_threshold=unsure, **asked)
    assert (found[0]["answer"], found[0]["start"], found[0]["end"]) == ("", 0, 0)
    assert [entry["answer"] for entry in found[1:]] == [
        entry["answer"] for entry in plain if entry["answer"]
    ][: len(found) - 1]
    given = pipeline(model=folders["lower"], score_threshold=unsure, **CPU)
    assert given(SHORT[0], STORY, **asked) == found
    theirs = pipeline(model=folders["lower"], scores="transformers", **CPU)
    with pytest.raises(UserError, match='score_threshold requires scores="bertqa"'):
        theirs(SHORT[0], STORY, score_threshold=0.5)


# --- models --------------------------------------------------------------------------------------


def test_the_default_is_the_shipped_model():
    qa = bertqa.pipeline("question-answering", device="cpu")
    answer = qa(question=ASKED[0], context=STORY)
    assert answer["answer"] == "Ida Quell"
    assert (qa.task, qa.device) == ("question-answering", torch.device("cpu"))
    own = QuestionAnswerer.from_pretrained("minilm-l6-squad", device="cpu")
    assert qa.dtype == own.runtime.dtype
    assert qa(question=ASKED, context=STORY)[0]["answer"] == own(ASKED[0], STORY)["answer"]


@pytest.mark.parametrize("use_fast", [True, False])
def test_objects_of_transformers(folders, made, use_fast):
    theirs = TheirModel.from_pretrained(folders["lower"])
    tokenizer = AutoTokenizer.from_pretrained(folders["lower"], use_fast=use_fast)
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    qa = pipeline(model=theirs, tokenizer=tokenizer, scores="transformers", **CPU)
    with torch.no_grad():
        theirs.qa_outputs.weight.neg_()  # as further training; the copy does not change
    assert qa(SHORT[0], STORY, top_k=4) == made("lower")(SHORT[0], STORY, top_k=4)
    before["qa_outputs.weight"].neg_()
    assert all(torch.equal(before[name], tensor) for name, tensor in theirs.state_dict().items())


def test_a_model_in_half_precision_is_converted(folders, made):
    theirs = TheirModel.from_pretrained(folders["lower"]).half()
    qa = pipeline(model=theirs, tokenizer=str(folders["lower"]), **CPU)
    assert qa(SHORT[0], STORY)["score"] == pytest.approx(
        made("lower", scores="bertqa")(SHORT[0], STORY)["score"], abs=0.05
    )


def test_a_saved_model_gives_the_same_answers(folders, made, tmp_path):
    theirs = TheirModel.from_pretrained(folders["lower"])
    tokenizer = AutoTokenizer.from_pretrained(folders["lower"])
    for i, qa in enumerate(
        [made("lower"), pipeline(model=theirs, tokenizer=tokenizer, scores="transformers", **CPU)]
    ):
        qa.save_pretrained(tmp_path / str(i))
        again = pipeline(model=str(tmp_path / str(i)), scores="transformers", **CPU)
        assert again(SHORT[0], STORY, top_k=3) == made("lower")(SHORT[0], STORY, top_k=3)
        opened = TheirModel.from_pretrained(tmp_path / str(i)).state_dict()
        assert all(
            torch.equal(opened[name], tensor) for name, tensor in theirs.state_dict().items()
        )


def test_a_model_changed_in_memory_is_not_saved(folders, tmp_path):
    qa = pipeline(model=folders["lower"], **CPU)
    with torch.no_grad():
        qa.model.head.weight.zero_()
    with pytest.raises(UserError, match="changed in memory"):
        qa.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("given", "device"),
    [
        ({"device": -1}, "cpu"), ({"device": "cpu"}, "cpu"), ({"device_map": "cpu"}, "cpu"),
        ({"device": torch.device("cpu")}, "cpu"), ({"device_map": {"": "cpu"}}, "cpu"),
        ({"model_kwargs": {"device_map": "cpu"}}, "cpu"),
    ],
)  # fmt: skip
def test_devices(folders, given, device):
    assert pipeline(model=folders["lower"], **given).device == torch.device(device)


def test_a_device_number_is_a_gpu_if_available(monkeypatch):
    from bertqa.answering.pipeline_settings import load_settings

    def device(given, **more):
        return load_settings("bertqa", given, None, more.get("device_map"), None).device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device(given) for given in (0, 1, -1, "cuda:1", None)] == [
        "cuda:0", "cuda:1", "cpu", "cuda:1", "auto",
    ]  # fmt: skip
    assert device(None, device_map="auto") == "auto"
    assert device(None, device_map="cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device(0) == "cpu"


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ({"dtype": torch.bfloat16}, torch.bfloat16), ({"torch_dtype": "float32"}, torch.float32),
        ({"dtype": "bfloat16", "torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"model_kwargs": {"torch_dtype": torch.float32}}, torch.float32),
        ({"scores": "transformers"}, torch.float32),
        ({"dtype": "auto", "scores": "transformers"}, torch.float32),
    ],
)  # fmt: skip
def test_precisions(folders, given, dtype):
    assert pipeline(model=folders["lower"], device="cpu", **given).dtype == dtype


def test_revision_and_token_are_passed_to_the_hub(monkeypatch, folders):
    asked = []

    def find(name, **options):
        asked.append((name, options))
        return folders["lower"]

    for module in (answerer, pipeline_loading):
        monkeypatch.setattr(module, "find_folder", find)
    pipeline(model="org/bert", tokenizer="org/words", revision="v2", token="hf_secret", **CPU)
    options = {"revision": "v2", "token": "hf_secret"}
    assert asked == [("org/bert", options | {"allow_bin": False}), ("org/words", options)]


def test_the_code_of_the_migration_page():
    page = (SHIPPED.parents[1] / "docs" / "migration.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(compile(first, "migration.md", "exec"), names)
    answer = names["qa"](question="Who built it?", context="Ada built it.")
    assert first.rstrip().endswith("# " + str(answer | {"score": ...}).replace("Ellipsis", "..."))
    exec(compile(second.replace("FOLDER", str(SHIPPED)), "migration.md", "exec"), names)
    assert names["qa"].scores == "transformers"


def test_transformers_is_never_imported(folders):
    code = (
        "import sys\nfrom bertqa import pipeline\n"
        f"qa = pipeline(model={str(folders['lower'])!r}, device=-1, scores='transformers')\n"
        "qa(question='who ran?', context='Ida ran.')\n"
        "print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- rejected input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "text-classification"}, "question-answering"),
        ({"framework": "tf"}, "safetensors"),
        ({"use_fast": False}, "use_fast"),
        ({"image_processor": "x"}, "image_processor"),
        ({"feature_extractor": object()}, "feature_extractor"),
        ({"config": "x"}, "config"),
        ({"tokenizer": "x"}, "tokenizer"),
        ({"scores": "softmax"}, "bertqa or transformers"),
        ({"device": True}, "device"),
        ({"device": "gpu"}, "device gpu"),
        ({"device": 0, "device_map": "auto"}, "device and device_map"),
        ({"dtype": "int3"}, "float32"),
        ({"dtype": "float32", "torch_dtype": "bfloat16"}, "dtype"),
        ({"model_kwargs": {"load_in_8bit": True}}, "load_in_8bit"),
        ({"model_kwargs": 3}, "model_kwargs"),
        ({"use_auth_token": "x"}, "did you mean 'token'"),
        (
            {"dtype": "float16", "device": "cpu"},
            "dtype float16 requires a GPU: pass dtype auto",
        ),
        ({"model": str(SHIPPED), "revision": "main"}, "revision"),
        ({"revison": "main"}, "revision"),
        ({"top_n": 3}, "top_k"),
        ({"top_k": 0}, "top_k"),
        ({"model": 3}, "BertForQuestionAnswering"),
    ],
)
def test_invalid_arguments_of_the_constructor_are_rejected(given, message):
    given = {"tokenizer": "x", **given} if given.get("model") == 3 else given
    with pytest.raises(UserError, match=message) as caught:
        pipeline(**given)
    assert "--" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["me/bert-fp16--squad", "./a --resume/bf16", "x --revision"])
def test_messages_quote_the_caller_verbatim(monkeypatch, tmp_path, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        pipeline(model=name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_len": 3}, "max_seq_len|max_answer_len"),
        ({"impossible_answer": True}, "handle_impossible_answer"),
        ({"truncation": True}, "truncation"),
        ({"top_k": 0}, "top_k"), ({"top_k": 1.5}, "top_k"), ({"top_k": True}, "top_k"),
        ({"max_answer_len": 0}, "max_answer_len"), ({"doc_stride": -1}, "doc_stride"),
        ({"score_threshold": 1.5}, "score_threshold"),
        ({"max_seq_len": 600}, "384"), ({"max_seq_len": 30, "doc_stride": 27}, "doc_stride"),
        ({"align_to_words": "no"}, "align_to_words"), ({"scores": "transformers"}, "scores"),
    ],
)  # fmt: skip
def test_invalid_parameters_of_a_call_are_rejected(qa, given, message):
    with pytest.raises(UserError, match=message) as caught:
        qa(question=SHORT[0], context=STORY, **given)
    assert "--" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "named", "error", "message"),
    [
        ([], {}, ValueError, "nothing"),
        ([], {"question": "who?"}, ValueError, "context"),
        ([], {"question": None, "context": STORY}, ValueError, "None"),
        ([], {"question": "", "context": STORY}, ValueError, "empty"),
        ([], {"question": "who?", "context": 3}, ValueError, "3"),
        ([], {"question": SHORT, "context": [STORY]}, ValueError, "3 questions and 1 context"),
        ([{"question": "who?"}], {}, KeyError, "context"),
        ([{"question": "who?", "context": None}], {}, ValueError, "None"),
        ([[{"question": "who?", "context": STORY}, 3]], {}, ValueError, "question 1 must .* got 3"),
        (["who?"], {}, ValueError, "who"),
        ([3], {}, ValueError, "3"),
        ([{"question": "who?", "context": STORY}], {"data": []}, ValueError, "one way"),
    ],
)
def test_invalid_inputs_are_rejected(qa, args, named, error, message):
    with pytest.raises(error, match=message):
        qa(*args, **named)


def test_a_row_of_a_generator_is_checked_lazily(qa):
    answers = iter(qa(row for row in [*rows(SHORT[:1], [STORY]), {"question": "who?"}]))
    assert next(answers)["answer"]
    with pytest.raises(KeyError, match="context"):
        next(answers)


def test_other_models_are_rejected(tmp_path, folders):
    sizes = {"vocab_size": 101, "dim": 36, "n_layers": 1, "n_heads": 4, "hidden_dim": 37}
    theirs = DistilBertForQuestionAnswering(DistilBertConfig(**sizes))
    theirs.save_pretrained(tmp_path)
    for given in ({"model": tmp_path}, {"model": theirs, "tokenizer": str(folders["lower"])}):
        with pytest.raises(UserError, match=r"'bert'.*'distilbert'"):
            pipeline(**given)
    bert = TheirModel.from_pretrained(folders["lower"])
    with pytest.raises(UserError, match="tokenizer"):
        pipeline(model=bert)
    with pytest.raises(UserError, match="tokens"):
        pipeline(model=bert, tokenizer=str(SHIPPED))
    with pytest.raises(UserError, match="qa_outputs"):
        pipeline(model=bert.bert, tokenizer=str(folders["lower"]))
