"""QuestionAnswerer: loading, answers and rejected input."""

import math
from functools import partial

import pytest
import torch

from bertqa import AnswerBatch, pipeline
from bertqa.answering import answerer as answering
from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.blocks import BlockAnswerer
from bertqa.data import tokenization
from bertqa.data.graphemes import joined_clusters
from bertqa.data.readers import Row, read_examples
from bertqa.data.squad import Example
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from bertqa.model import hub
from bertqa.model.checkpoint import load_checkpoint
from bertqa.model.hub import find_folder
from bertqa.settings import DecodingSettings, Overrides, WindowSettings
from bertqa.training.checkpoints import load_for_training
from tests.commands.world import World, without_head
from tests.corpus import PAIRS
from tests.helpers import STORIES, write_checkpoint

CONTEXT = "Ada built the port of Quill in the town; the river ran past the ship."
WHO, WHERE, WHAT = "Who built the port?", "Where was it?", "What ran past the ship?"

stories = read_examples(STORIES)
NARROW = WindowSettings(max_seq_length=96, doc_stride=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("answering") / "tiny")


def load(folder, **changes):
    return QuestionAnswerer.from_pretrained(
        folder, **({"device": "cpu", "precision": "fp32"} | changes)
    )


@pytest.fixture(scope="module")
def qa(folder):
    return load(folder)


def close(answer):
    """Return an answer that compares equal to the same answer from another batch."""
    return answer | {"score": pytest.approx(answer["score"], rel=1e-4)}


# --- the interface of transformers' pipeline -----------------------------------------------------


@pytest.mark.parametrize("context", [CONTEXT, *(context[:300] for _, context in PAIRS[::3])])
def test_one_answer_is_a_dictionary_and_top_k_gives_a_sorted_list(qa, context):
    answers = qa(question=WHO, context=context, top_k=5)
    assert answers[0] == qa(question=WHO, context=context)
    scores = [answer["score"] for answer in answers]
    if not joined_clusters(context):  # else probabilities sum over several spans
        assert scores == sorted(scores, reverse=True)
    assert len({(answer["start"], answer["end"]) for answer in answers}) == 5
    for answer in answers:
        assert list(answer) == ["score", "start", "end", "answer"]
        assert [type(value) for value in answer.values()] == [float, int, int, str]
        assert 0 < answer["score"] <= 1
        assert answer["answer"] == context[answer["start"] : answer["end"]] != ""


def test_top_k_can_exceed_n_best_and_the_number_of_spans(folder, qa):
    few = load(folder, decoding=DecodingSettings(n_best_size=2))
    assert few(WHO, CONTEXT, top_k=30) == qa(WHO, CONTEXT, top_k=30)
    every = qa(WHO, "a b", top_k=50)
    assert sorted(answer["answer"] for answer in every) == ["a", "a b", "b"]
    assert math.fsum(answer["score"] for answer in every) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "context",
    ["한국 ship a b", "a\u0301b c\u0302d ship", "न्कि ship", "👨‍👩‍👧 ship \u1100\u1161\u11a8"],
)
def test_probabilities_sum_over_spans_of_the_same_characters(qa, context):
    """Several tokens may be one grapheme cluster; top_k does not change probabilities."""
    every = qa(WHO, context, top_k=100)
    assert len({(answer["start"], answer["end"]) for answer in every}) == len(every)
    assert math.fsum(answer["score"] for answer in every) == pytest.approx(1, abs=1e-6)
    assert qa(WHO, context)["score"] == pytest.approx(every[0]["score"], rel=1e-6)


@pytest.mark.parametrize("collection", [list, tuple])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_several_questions_about_one_context(qa, collection, number):
    questions = collection([WHO, WHERE, WHAT][:number])
    assert qa(questions, CONTEXT) == [close(qa(question, CONTEXT)) for question in questions]
    lists = qa(questions, CONTEXT, top_k=2)
    assert [[close(answer) for answer in answers] for answers in lists] == [
        qa(question, CONTEXT, top_k=2) for question in questions
    ]


def test_several_questions_with_one_context_each(qa):
    contexts = [CONTEXT, "The ship was in port.", CONTEXT[::-1]]
    answers = qa([WHO, WHERE, WHAT], contexts)
    asked = zip((WHO, WHERE, WHAT), contexts, strict=True)
    assert answers == [close(qa(question, context)) for question, context in asked]
    # The answers differ, so the pairing of questions and contexts matters.
    assert len({answer["answer"] for answer in answers}) == 3


def test_max_answer_len_counts_tokens(folder, qa):
    # Each of these words is one token.
    context = "who a the of in to was is what how many where when did"
    words = {n: qa(WHO, context, max_answer_len=n, top_k=200) for n in (1, 2, 5)}
    longest = {n: max(len(a["answer"].split()) for a in found) for n, found in words.items()}
    assert longest == {1: 1, 2: 2, 5: 5}
    assert len(words[1]) == 14
    assert len(words[2]) == 14 + 13
    kept = load(folder, decoding=DecodingSettings(max_answer_length=2))
    assert kept(WHO, context, top_k=200) == words[2]
    assert kept(WHO, context, top_k=200, max_answer_len=5) == words[5]


def test_handle_impossible_answer_adds_no_answer(folder, qa):
    spans = qa(WHO, CONTEXT, top_k=1000, max_answer_len=100)
    both = qa(WHO, CONTEXT, top_k=1000, max_answer_len=100, handle_impossible_answer=True)
    assert "" not in [answer["answer"] for answer in spans]
    (null,) = [answer for answer in both if answer["answer"] == ""]
    assert (null["start"], null["end"]) == (0, 0)
    for found in (spans, both):
        assert math.fsum(answer["score"] for answer in found) == pytest.approx(1, abs=1e-5)
    # It scales the probabilities of all spans equally.
    ratios = [with_null["score"] / (1 - null["score"]) for with_null in both if with_null != null]
    assert ratios == pytest.approx([answer["score"] for answer in spans], rel=1e-4)
    settled = load(folder, decoding=DecodingSettings(version_2_with_negative=True))
    assert settled(WHO, CONTEXT, top_k=1000, max_answer_len=100) == both
    assert settled(WHO, CONTEXT, handle_impossible_answer=False) == qa(WHO, CONTEXT)


@pytest.mark.parametrize(("threshold", "silent"), [(-1000.0, True), (1000.0, False)])
def test_the_answer_chosen_by_the_threshold_comes_first(folder, qa, threshold, silent):
    decoding = DecodingSettings(version_2_with_negative=True, null_score_diff_threshold=threshold)
    answers = load(folder, decoding=decoding)(WHO, CONTEXT, top_k=4)
    best = qa(WHO, CONTEXT)["answer"]
    assert answers[0]["answer"] == ("" if silent else best)
    assert best in [answer["answer"] for answer in answers]
    assert len({(answer["start"], answer["end"]) for answer in answers}) == 4


@pytest.mark.parametrize("impossible", [False, True])
def test_an_answer_below_the_score_threshold_becomes_no_answer(folder, impossible):
    settings = DecodingSettings(
        version_2_with_negative=impossible, null_score_diff_threshold=1000.0
    )
    qa = load(folder, decoding=settings)
    plain = qa(WHO, CONTEXT, top_k=4)
    best = plain[0]["score"]
    assert qa(WHO, CONTEXT, top_k=4, score_threshold=best) == plain
    found = qa(WHO, CONTEXT, top_k=4, score_threshold=best * 1.01)
    assert (found[0]["answer"], found[0]["start"], found[0]["end"]) == ("", 0, 0)
    assert found[1] == plain[0]
    assert (found[0]["score"] > 0) == impossible  # else "no answer" has the probability 0
    settled = load(folder, decoding=settings, overrides=Overrides(score_threshold=best * 1.01))
    assert settled(WHO, CONTEXT, top_k=4) == found
    assert settled(WHO, CONTEXT, top_k=4, score_threshold=0.0) == plain
    with pytest.raises(UserError, match=r"score_threshold must be a number from 0 to 1, got 1\.5"):
        qa(WHO, CONTEXT, score_threshold=1.5)


def test_offsets_count_code_points_of_the_given_context(qa):
    plain = qa("who?", "a b", top_k=3)
    for before in ("  \n", "\ufeff", "\u00a0\u200b\t"):
        moved = [
            close(answer | {key: answer[key] + len(before) for key in ("start", "end")})
            for answer in plain
        ]
        assert qa("who?", f"{before}a b ", top_k=3) == moved


def test_special_tokens_in_a_text_are_plain_text(qa):
    context = "who? [SEP] a [CLS] b [MASK] [PAD]"
    answers = qa(WHO, context, top_k=400)
    assert "[SEP] a [CLS]" in [answer["answer"] for answer in answers]
    assert "[" in [answer["answer"] for answer in answers]


# --- single questions and batches ----------------------------------------------------------------


def test_single_and_batched_questions_have_the_same_answers(folder):
    # Several windows each, so batches have windows of several questions.
    qa = load(folder, windows=NARROW)
    examples = [e for e in stories if len(e.context) < 800][::12]
    questions, contexts = [e.question for e in examples], [e.context for e in examples]
    together = qa(questions, contexts, top_k=3)
    alone = [qa(*pair, top_k=3) for pair in zip(questions, contexts, strict=True)]
    assert [[close(answer) for answer in answers] for answers in alone] == together
    assert len({answers[0]["answer"] for answers in together}) > len(examples) / 2


def test_a_stream_gives_the_answers_of_single_questions(folder):
    qa = load(folder, windows=NARROW)
    examples = [e for e in stories if len(e.context) < 800][5:70:16]
    for example, prediction in zip(examples, qa.answer(examples), strict=True):
        answer = qa(example.question, example.context)
        assert prediction.id == example.id
        assert prediction.text == answer["answer"]
        assert prediction.answers[0].probability == pytest.approx(answer["score"], rel=1e-4)


@pytest.mark.parametrize("size", [0, 1, 3, 40])
def test_a_stream_is_read_lazily(qa, monkeypatch, size):
    monkeypatch.setattr(answering, "QUESTIONS_PER_BLOCK", 3)
    read = []

    def many():
        for number in range(size):
            read.append(number)
            yield Example(str(number), f"{WHO} {number}", CONTEXT)

    stream = qa.answer(many())
    assert read == []
    for number, prediction in zip(range(7), stream, strict=False):
        assert prediction.id == str(number)
        assert len(read) == min(size, 3 * (number // 3 + 1))
    assert len(read) == min(size, 9)


def by_threes(items):
    return [items[n : n + 3] for n in range(0, len(items), 3)]


def by_calls(folder, examples):
    qa = load(folder)
    return [qa(e.question, e.context) for e in examples]


def by_blocks_of_a_file(folder, examples):
    answer = BlockAnswerer(load(folder), top_k=2, all_offsets=False)
    rows = [Row(n, "", b"", example) for n, example in enumerate(examples)]
    return [answer(part) for part in by_threes(rows)]


def by_batches(folder, examples):
    answers = AnswerBatch(folder, device="cpu", precision="fp32")
    columns = ([e.question for e in examples], [e.context for e in examples])
    parts = zip(*map(by_threes, columns), strict=True)
    return [answers({"question": questions, "context": texts}) for questions, texts in parts]


def by_pipeline(folder, examples, **options):
    ask = pipeline(model=str(folder), device="cpu", **options)
    return list(ask(example for example in examples))


@pytest.mark.parametrize(
    "ask",
    [
        lambda folder, examples: [*load(folder).answer(examples)],
        by_calls,
        by_blocks_of_a_file,
        by_batches,
        by_pipeline,
        partial(by_pipeline, scores="transformers", align_to_words=True),
    ],
)
def test_a_context_of_consecutive_questions_is_tokenized_once(folder, monkeypatch, ask):
    """The number of blocks does not matter, and the answers equal those without the cache."""
    contexts = [CONTEXT] * 5 + [CONTEXT.upper() * 9] * 4 + [CONTEXT[::-1]] * 4
    examples = [Example(str(n), (WHO, WHERE, WHAT)[n % 3], c) for n, c in enumerate(contexts)]
    encode, encoded = BertTokenizer.encode, []
    monkeypatch.setattr(answering, "QUESTIONS_PER_BLOCK", 3)
    monkeypatch.setattr(
        BertTokenizer, "encode", lambda self, texts: encoded.extend(texts) or encode(self, texts)
    )
    found = ask(folder, examples)
    assert [encoded.count(context) for context in dict.fromkeys(contexts)] == [1, 1, 1]
    monkeypatch.setattr(tokenization, "KEPT_CONTEXTS", 0)
    monkeypatch.setattr("bertqa.answering.pickling._loaded", {})  # forget the last model
    assert ask(folder, examples) == found
    assert encoded.count(CONTEXT) >= 1 + 2


def test_bf16_answers_are_close_to_fp32(folder, qa):
    half = load(folder, precision="bf16")
    dtypes = {name: parameter.dtype for name, parameter in half.model.named_parameters()}
    assert dtypes.pop("head.weight") == dtypes.pop("head.bias") == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}
    questions = [e.question for e in stories[::15]]
    contexts = [e.context[:200] for e in stories[::15]]
    both = list(zip(qa(questions, contexts), half(questions, contexts), strict=True))
    for precise, rounded in both:
        assert rounded["score"] == pytest.approx(precise["score"], rel=0.1)
    same = [precise["answer"] == rounded["answer"] for precise, rounded in both]
    assert sum(same) > 0.7 * len(same)
    assert [precise["score"] for precise, _ in both] != [rounded["score"] for _, rounded in both]


# --- loading -------------------------------------------------------------------------------------


def test_a_path_a_string_and_a_name_load_the_same_model(folder, qa, monkeypatch):
    monkeypatch.setattr(hub, "weights_dir", lambda: folder.parent)
    wanted = qa(WHO, CONTEXT)
    for name in (folder, str(folder), folder.name):
        found = load(name)
        assert found(WHO, CONTEXT) == wanted
        assert not found.model.training
    assert find_folder(folder.name) == folder


def test_a_misspelled_name_gets_a_suggestion(folder, monkeypatch):
    monkeypatch.setattr(hub, "weights_dir", lambda: folder.parent)
    (folder.parent / f"{folder.name}s").mkdir()  # without a model, so it is not suggested
    with pytest.raises(UserError) as mistyped:
        find_folder(f"{folder.name}s!")
    assert str(mistyped.value).endswith(f" (did you mean {folder.name!r}?)")
    with pytest.raises(UserError) as other:
        find_folder("quite another!")
    assert "here" not in str(other.value)
    monkeypatch.setattr(hub, "weights_dir", lambda: folder.parent / "none")
    with pytest.raises(UserError):
        find_folder(f"{folder.name}!")


def test_a_model_in_training_answers_without_dropout(folder, qa):
    model, tokenizer, _ = load_for_training(str(folder))
    found = QuestionAnswerer(model.train(), tokenizer, runtime=qa.runtime)
    assert model.config.hidden_dropout_prob > 0
    assert found(WHO, CONTEXT) == qa(WHO, CONTEXT)


def test_the_weights_folder_is_in_the_source_tree(monkeypatch, tmp_path):
    tree = hub.weights_dir()
    assert tree.name == "weights"
    assert (tree.parent / "bertqa" / "model" / "hub.py").samefile(hub.__file__)
    # Installed without a source tree: under the current folder.
    elsewhere = tmp_path / "site" / "bertqa" / "model" / "hub.py"
    monkeypatch.setattr(hub, "__file__", str(elsewhere))
    monkeypatch.chdir(tmp_path)
    assert hub.weights_dir().resolve() == tmp_path.resolve() / "weights"


def test_the_seed_initializes_a_missing_head(folder, tmp_path):
    headless = World(tmp_path, folder).tensors(without_head)
    first, again, other = (load_for_training(str(headless), seed=seed) for seed in (1, 1, 2))
    assert first[2].initialized == ("qa_outputs.bias", "qa_outputs.weight")
    assert first[1].vocab_size == first[0].config.vocab_size
    assert torch.equal(first[0].head.weight, again[0].head.weight)
    assert not torch.equal(first[0].head.weight, other[0].head.weight)
    query = [loaded[0].layers[0].attention.query.weight for loaded in (first, other)]
    assert torch.equal(*query)


def test_a_vocabulary_that_does_not_match_the_embedding_is_rejected(tmp_path):
    folder = write_checkpoint(tmp_path / "large", vocab_size=5000)  # of another model
    with pytest.raises(UserError, match=r"the model in .* has embeddings \(5000\), got \d+"):
        load_for_training(str(folder))
    folder = write_checkpoint(tmp_path / "small", vocab_size=101)
    for loader in (load, lambda name: load_for_training(str(name))):
        with pytest.raises(UserError, match=r"vocab\.txt: must have .* \(101\), got \d+"):
            loader(folder)


def test_windows_are_limited_to_the_position_embeddings(folder, tmp_path):
    with pytest.raises(UserError, match=r"--max_seq_length must be .* 384 positions .*, got 385"):
        load(folder, windows=WindowSettings(max_seq_length=385))
    assert load(folder, windows=WindowSettings(max_seq_length=384)).windows.max_seq_length == 384
    qa = load(write_checkpoint(tmp_path / "short", max_position_embeddings=200))
    assert qa.windows == WindowSettings(max_seq_length=200, doc_stride=66)
    long = next(e for e in stories if len(e.context) > 600)
    answer = qa(long.question, long.context)
    assert answer["answer"] == long.context[answer["start"] : answer["end"]] != ""


def test_the_constructor_rejects_the_tokenizer_of_another_model(folder):
    model = load_checkpoint(folder)[0]
    with pytest.raises(UserError, match="as many tokens as the model has embeddings"):
        QuestionAnswerer(model, BertTokenizer.load(find_folder(hub.SHIPPED_MODEL)))


# --- rejected input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "context", "message"),
    [
        ("", CONTEXT, "question must be a text with a visible character, got ''"),
        (" \t\n", CONTEXT, r"question must be .*, got ' \\t\\n'"),
        (WHO, "", "context must be .*, got ''"),
        (WHO, "  ", "context must be .*, got '  '"),
        (WHO, "\u200b\u0301", r"context must be a text with a visible .*, got '\\u200b"),
        ([WHO, "\u00ad"], CONTEXT, "question at index 1 must be .*, got"),
        (None, CONTEXT, "question must be a text or a list of texts, got None"),
        (WHO, None, "context must be a text or a list of texts, got None"),
        (WHO, 7, "context must be a text or a list of texts, got 7"),
        (WHO, {"text": CONTEXT}, "context must be a text or a list of texts, got {"),
        ([WHO, ""], CONTEXT, "question at index 1 must be .*, got ''"),
        ([WHO, WHERE], [CONTEXT, ""], "context at index 1 must be .*, got ''"),
        ([WHO, None], CONTEXT, "question at index 1 must be .*, got None"),
        ([WHO], [7], "context at index 0 must be .*, got 7"),
        ([WHO, WHERE], [CONTEXT], "2 questions and 1 context"),
        ([WHO], [CONTEXT, CONTEXT], "1 question and 2 contexts"),
        (WHO, [CONTEXT, CONTEXT], "1 question and 2 contexts"),
        (WHO, [], "1 question and 0 contexts"),
    ],
)
def test_invalid_questions_and_contexts_are_rejected(qa, question, context, message):
    with pytest.raises(UserError, match=message):
        qa(question, context)


@pytest.mark.parametrize("name", ["top_k", "max_answer_len"])
@pytest.mark.parametrize("value", [0, -2, "3", 1.5, [3], True])
def test_invalid_numbers_are_rejected_with_their_keyword(qa, name, value):
    for ask in (qa, lambda question, text, **given: qa.read(question, [text], **given)):
        with pytest.raises(UserError, match=f"^{name} must be a whole number of at least 1, got"):
            ask(WHO, CONTEXT, **{name: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"windows": {"max_seq_length": 96}}, "windows must be of the class WindowSettings, got {"),
        ({"decoding": 5}, "decoding must be of the class DecodingSettings, got 5"),
        ({"precision": 16}, "precision must be one of auto, fp32, bf16, fp16, int8, got 16"),
    ],
)
def test_settings_of_another_class_are_rejected(folder, given, message):
    with pytest.raises(UserError, match=message):
        load(folder, **given)


def test_a_number_above_64_bits_is_rejected(qa):
    with pytest.raises(UserError, match=r"^top_k must be less than 2\*\*63, got 1000"):
        qa(WHO, CONTEXT, top_k=10**30)


def test_handle_impossible_answer_must_be_a_bool(qa):
    for value in (1, "no", "False"):
        with pytest.raises(UserError, match=r"^handle_impossible_answer must be True or False"):
            qa(WHO, CONTEXT, handle_impossible_answer=value)


def test_a_question_longer_than_a_window_is_rejected_or_truncated(folder):
    question = "who is in the town " * 40
    with pytest.raises(UserError, match="--max_query_length 64"):
        load(folder, windows=NARROW)(question, CONTEXT)
    cut = load(folder, windows=WindowSettings(96, 24, max_query_length=64))
    assert cut(question, CONTEXT)["answer"] in CONTEXT
    with pytest.raises(UserError, match=r"'late': must have .* got 200"):
        list(load(folder, windows=NARROW).answer([Example("late", question, CONTEXT)]))
