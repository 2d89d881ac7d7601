"""For any question and context, the answer is a slice of the context in whole graphemes."""

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.data.squad import Example
from bertqa.data.text import is_blank
from bertqa.data.windows import make_windows
from bertqa.errors import UserError
from bertqa.settings import WindowSettings
from tests.helpers import write_checkpoint

ODD = {
    "decomposed accents": "Le cafe\u0301 de Zoe\u0308 ouvre a\u0300 huit heures.",
    "joined emoji": "👩🏾‍🍳 and 👨‍👩‍👧 wave 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇫🇷🇩🇪 at ❤️ 1️⃣.",
    "right to left": "בנתה עדה את הרציף في عام ١٦٤٢ \u202eabc\u202c.",
    "zero width": "A\u200bd\u200ca\u200d bui\u2060lt\ufeff it.",
    "controls": "Ada\x00 built\x07 the\x1b[31m quay\x7f\x85 in\r\n1642.\u2028Ben\u2029swept.",
    "no spaces": "東京都は日本の首都である" * 20,
    "one long word": "a" * 100_000,
    "vowel signs": "தமிழ் நாடு கட்டியது யார் กี่ ก้ำ",
    "special tokens": "[CLS] Ada [SEP] built [MASK] it [PAD] in [UNK] 1642 ##s [SEP]",
    "private and unassigned": "\ue000\uf8ff\U0010ffff\U000e0fff x",
    "mathematical": "𝔸𝕕𝕒 𝖇𝖚𝖎𝖑𝖙 ﬁve ½ ①",
}


@pytest.fixture(scope="module")
def qa(tmp_path_factory: pytest.TempPathFactory) -> QuestionAnswerer:
    folder = write_checkpoint(tmp_path_factory.mktemp("odd") / "tiny", num_hidden_layers=1)
    windows = WindowSettings(64, doc_stride=16, max_query_length=24)
    return QuestionAnswerer.from_pretrained(folder, windows=windows, device="cpu", precision="fp32")


def assert_is_a_slice(context: str, answer: dict[str, object]) -> None:
    start, end = answer["start"], answer["end"]
    assert answer["answer"] == context[start:end]
    ends = {0, *(match.end() for match in regex.finditer(r"\X", context))}
    assert {start, end} <= ends, (context, start, end)


@pytest.mark.parametrize("context", ODD.values(), ids=ODD.keys())
def test_odd_contexts_are_answered(qa, context):
    answers = qa("Who built it?", context, top_k=20)
    for answer in answers:
        assert_is_a_slice(context, answer)
    assert any(answer["answer"] for answer in answers)


@pytest.mark.parametrize("question", ODD.values(), ids=ODD.keys())
def test_odd_questions_are_answered(qa, question):
    answer = qa(question, "Ada built the quay.")
    assert (
        answer["answer"]
        and answer["answer"] == "Ada built the quay."[slice(answer["start"], answer["end"])]
    )


TEXT = st.text(st.characters(exclude_categories=()), min_size=1, max_size=60)


@settings(derandomize=True, max_examples=300)
@given(TEXT, TEXT)
@example("?", "\ud83d")
@example("\udc80?", "Ada")
@example("?", "\u0301\u0302\u200d\ufe0f")
@example("?", "\ufffd\ue000")
@example("\u200b", "\u200b")
@example("?", " \u3000\u00a0")
def test_any_two_texts_give_an_answer_unless_one_is_blank(qa, question, context):
    if is_blank(question) or is_blank(context):
        with pytest.raises(UserError, match="a visible character"):
            qa(question, context)
        return
    answers = qa(question, context, top_k=3)
    for answer in answers:
        assert_is_a_slice(context, answer)
    assert answers[0]["answer"]


@settings(derandomize=True, max_examples=200)
@given(st.lists(st.sampled_from([*ODD["special tokens"].split(), " ", "a", "é"]), min_size=1))
def test_the_text_of_a_special_token_stays_text(qa, parts):
    text = "".join(parts)
    if not text.strip():
        return
    windows = make_windows([Example("0", text, text)], qa.tokenizer, qa.windows)
    for window in range(len(windows)):
        ids = windows[window].input_ids
        assert ids.count(windows.sep_id) == 2 and ids.count(windows.cls_id) == 1
        assert ids[0] == windows.cls_id and ids[-1] == windows.sep_id


def test_a_context_of_two_megabytes(qa):
    """Its rows differ by their numbers."""
    rows = (f"In {1000 + i % 9000} the ship of the town was in the river. " for i in range(50_000))
    context = "".join(rows)[: 2 * 2**20]
    assert len(context) == 2 * 2**20
    answer = qa("Where was the ship?", context)
    assert_is_a_slice(context[: answer["end"]], answer)
    assert answer["answer"] and answer["end"] - answer["start"] < 200
