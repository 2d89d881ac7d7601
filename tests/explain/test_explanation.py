"""Explanations agree with the model, the decoder and attribution.py."""

import base64
import copy
import math
import re
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bertqa.answering.answerer import QuestionAnswerer, make_examples
from bertqa.data.text import on_one_line
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from bertqa.explain import explainer
from bertqa.explain.attribution import head_effects
from bertqa.explain.explainer import explain, passes
from bertqa.explain.explanation import answer_text
from bertqa.explain.hooks import record
from bertqa.explain.page_data import compressed_attention, quantized
from bertqa.explain.sources import sources
from bertqa.explain.terminal import render
from bertqa.model.checkpoint import load_checkpoint
from bertqa.model.packing import PackedBatch
from bertqa.report.page import clean
from bertqa.settings import DecodingSettings, Overrides, WindowSettings
from tests.explain.conftest import (
    CONTEXT,
    CPU,
    NEGATIVE,
    NEVER,
    NO_TOKENS,
    QUESTION,
    STEPS,
    WINDOWS,
)

ROOT = Path(__file__).parents[2]
NUMBERED = "".join(f" {number}." for number in range(999))


@pytest.mark.parametrize(
    "decoding",
    [
        DecodingSettings(),
        DecodingSettings(decoder="top20", max_answer_length=5),
        NEGATIVE,
        NEVER,
        replace(NEGATIVE, temperature=100.0),  # "no answer" is as likely as any span
    ],
)
def test_the_explained_answer_is_the_answer_of_infer(explained, folder, decoding):
    model, tokenizer = load_checkpoint(folder)[0], BertTokenizer.load(folder)
    qa = QuestionAnswerer(model, tokenizer, WINDOWS, decoding, CPU)
    (expected,) = qa.answer(make_examples(QUESTION, CONTEXT))
    for given in (None, expected):
        e = explained(decoding=decoding, prediction=given)
        assert e.prediction.text == expected.text == e.answer.answer.text
        assert [c.answer.text for c in e.candidates] == [a.text for a in expected.answers]
        for candidate, answer in zip(e.candidates, expected.answers, strict=True):
            assert candidate.answer == pytest.approx(answer, abs=1e-4)
    assert len(e.null_scores) == len(e.best_spans) > 1
    if decoding.decoder == "exact":  # the best span overall is the best of its window
        best = max(answer.probability for answer in expected.answers if answer.text)
        of_windows = [c.answer.probability for c in e.best_spans if c]
        assert max(of_windows) == pytest.approx(best, rel=1e-4)
    assert e.explained_score == pytest.approx(e.answer.answer.score, abs=1e-4)
    if decoding.null_score_diff_threshold < 0:
        assert e.is_null and (e.answer.first, e.answer.last) == (0, 0)
        assert e.null_scores[e.window] == min(e.null_scores)


def test_score_threshold_does_not_apply(folder, monkeypatch):
    monkeypatch.setattr(explainer, "explain", lambda *_, prediction, **__: prediction)
    found = explainer.explain_checkpoint(
        str(folder), QUESTION, CONTEXT, overrides=Overrides(score_threshold=1.0), device="cpu",
        precision="fp32",
    )  # fmt: skip
    assert found.text


def test_candidates_have_the_tokens_of_their_answers(found):
    here = [c for c in found.candidates if c.window == found.window]
    assert len(here) > 1
    start, end = found.logits
    for candidate in here:
        answer = candidate.answer
        logits = float(start[candidate.first]), float(end[candidate.last])
        assert logits == pytest.approx((answer.start_logit, answer.end_logit), abs=1e-4)
        assert found.offsets[candidate.first][0] in range(answer.start, answer.end)
        assert candidate.first <= candidate.last


def test_a_span_in_two_windows_is_traced_by_its_logits(explained):
    e = explained(windows=WindowSettings(48, 30), decoding=DecodingSettings(n_best_size=200))
    scores = {}
    for candidate in e.candidates:
        scores.setdefault(candidate.window, []).append(candidate.answer.score)
    assert len(scores) > 2  # windows overlap by 30 tokens, and each has distinct spans
    for number, best in enumerate(e.best_spans):
        # No candidate of a window has a higher score than the window's best span.
        assert max(scores.get(number, [-1e9])) <= best.answer.score + 1e-4


def test_an_answer_in_bf16_is_traced_to_the_same_tokens(explained, found, rough):
    e = explained(prediction=rough, answered_in="bf16")
    assert rough.text == found.prediction.text
    assert e.answered == rough and e.prediction == found.prediction
    assert e.answer == found.answer  # its scores are in float32, not in bf16
    assert e.answered_score == rough.answers[0].score != e.answer.answer.score
    assert e.is_in_fp32


def test_another_answer_than_in_float32_keeps_its_scores(explained, found, other_answer):
    e = explained(prediction=other_answer, answered_in="bf16")
    assert e.prediction == e.answered == other_answer != found.prediction
    assert e.answer.answer.text == other_answer.text != found.prediction.text
    assert e.explained_score != e.answer.answer.score
    assert e.explained_score == pytest.approx(e.answer.answer.score, abs=0.3)
    assert not e.is_in_fp32


def test_the_precision_is_named_if_there_are_two(explained, found, rough, other_answer):
    e = explained(prediction=other_answer, answered_in="bf16")
    text = render(e)
    headings = [part.splitlines()[0] for part in text.split("\n\n")]
    named = [" ".join(re.findall("bf16|fp32", heading)) for heading in headings]
    assert named == ["", "fp32", "bf16", "fp32", "fp32", "fp32"]
    assert f"(in bf16; in fp32 {e.explained_score:+.3f})" in text
    same = render(explained(prediction=rough, answered_in="bf16"))
    assert same.replace(f" (in bf16 {rough.answers[0].score:+.3f})", "") == render(found) != same
    assert "fp32" not in render(found)


def test_probabilities_of_best_spans_are_over_all_windows(found):
    best = max(found.best_spans, key=lambda c: c.answer.score)
    assert best.answer == pytest.approx(found.candidates[0].answer, abs=1e-4)
    assert [c.window for c in found.best_spans] == list(range(len(found.best_spans)))
    assert 0 < sum(c.answer.probability for c in found.best_spans) < 1


def test_the_lens_reads_every_layer_and_the_last_is_the_model(found):
    assert found.layer_logits.shape == (4, 2, len(found.tokens)) and len(found.layers) == 4
    last, answer = found.layers[-1], found.answer
    assert last.best.answer.text == answer.answer.text
    start, end = found.probabilities.tolist()
    assert (sum(start), sum(end)) == pytest.approx((1, 1))
    assert last.start_probability == pytest.approx(start[answer.first])
    assert last.end_probability == pytest.approx(end[answer.last])
    for layer, logits in zip(found.layers, found.layer_logits, strict=True):
        start, end = logits.tolist()
        assert layer.start_rank == 1 + sum(s > start[answer.first] for s in start)
        assert layer.end_rank == 1 + sum(s > end[answer.last] for s in end)
        best = layer.best
        assert start[best.first] + end[best.last] == pytest.approx(best.answer.score)
        assert 0 < best.answer.probability < 1


def test_inside_belongs_to_the_answer(found, model, tokenizer):
    ids = [tokenizer._backend.token_to_id(token) for token in found.tokens]
    kinds = [int(i >= found.context_tokens.start) for i in range(len(ids))]
    batch, inside = PackedBatch.from_windows([ids], [kinds]), found.inside
    first, last = found.answer.first, found.answer.last
    effects = head_effects(model, batch, first, last)
    torch.testing.assert_close(inside.head_effects, effects)
    assert inside.head_effects[inside.strongest_head] == effects.max()
    with torch.no_grad(), record(model, ["layers.1.attention.probabilities"]) as seen:
        output = model(batch)
    (probabilities,) = seen["layers.1.attention.probabilities"]
    torch.testing.assert_close(inside.attentions[1], probabilities)
    torch.testing.assert_close(found.logits, torch.stack(tuple(output)))
    start, end = inside.start_attribution, inside.end_attribution
    scores = float(output.start_logits[first]), float(output.end_logits[last])
    assert (start.score, end.score) == pytest.approx(scores, abs=1e-4)
    torch.testing.assert_close(inside.attributions, start.tokens + end.tokens)
    assert inside.replacement == "[MASK]"


def test_progress_counts_every_pass(explained, model):
    done: list[int] = []
    explained(context="Ada built it.", progress=done.append)
    assert sum(done) == passes(model, STEPS)


def test_the_cells_are_the_text_of_the_window(found):
    cells = list(found.cells())
    first, last = (found.offsets[i] for i in (found.context_tokens[0], found.context_tokens[-1]))
    assert "".join(cell.text for cell in cells) == CONTEXT[first[0] : last[1]]
    assert [i for cell in cells for i in cell.tokens] == list(found.context_tokens)


def test_the_matrix_is_the_sum_of_two_logits(explained):
    found = explained(decoding=DecodingSettings(max_answer_length=4))
    matrix, (start, end) = found.span_matrix(), found.logits.tolist()
    for i, scores in zip(matrix.starts, matrix.scores.tolist(), strict=True):
        expected = [start[i] + end[j] if i <= j < i + 4 else -math.inf for j in matrix.ends]
        assert scores == pytest.approx(expected)
    assert found.answer.first in matrix.starts and found.answer.last in matrix.ends
    assert float(matrix.scores.max()) == pytest.approx(found.explained_score, abs=1e-4)
    wide = found.span_matrix(reach=100)
    assert len(wide.starts) == len(wide.ends) == 30  # the maximum


def test_a_text_without_tokens(explained):
    e = explained(context=NO_TOKENS)
    assert e.is_null and e.prediction.text == "" and not e.context_tokens
    assert e.span_matrix() is None and e.best_spans == (None,) and list(e.cells()) == []
    assert e.layers[-1].best is None
    assert "(no answer)" in render(e)
    v2 = render(explained(context=NO_TOKENS, decoding=NEGATIVE))
    assert "the context has no span" in v2 and "e+" not in v2 and "0000000" not in v2


@pytest.mark.parametrize(
    "context",
    ["re\u0301sume\u0301", "Ada built re\u0301sume\u0301s", "a\u0301 b\u0301 c\u0301",
     "re\u0301sume\u0301 ½ 한 of Ada"],
)  # fmt: skip
def test_the_marked_answer_includes_its_combining_accents(explained, context):
    """The tokenizer drops them; on the page they belong to the letter before."""
    e = explained(context=context, windows=None)
    texts = [cell.text for cell in e.cells()]
    assert "".join(texts) == context and all(texts)
    inside = [i for i, c in enumerate(e.cells()) if set(e.answer.tokens) & set(c.tokens)]
    assert "".join(texts[inside[0] : inside[-1] + 1]) == e.answer.answer.text


def test_a_very_long_answer_is_shortened(explained):
    e = explained(context="x" * 100_000)
    assert len(e.prediction.text) == 100_000
    assert len(answer_text(e.answer)) < 500 and "..." in answer_text(e.answer)
    assert len(render(e)) < 20_000


def test_invalid_input_raises(explained, model, tokenizer):
    with pytest.raises(UserError, match=r"question must be .*, got ' '"):
        explained(question=" ")
    with pytest.raises(UserError, match="positions"):
        explained(windows=WindowSettings(385, 16))
    packed = QuestionAnswerer(copy.deepcopy(model), tokenizer, WINDOWS, runtime=CPU).model
    for ready in (packed, copy.deepcopy(model).bfloat16()):
        with pytest.raises(UserError, match="model: must be in float32"):
            explain(ready, tokenizer, QUESTION, CONTEXT)


# --- numbers on the page -------------------------------------------------------------------------


def unpacked(text: str, length: int) -> torch.Tensor:
    data = bytearray(zlib.decompress(base64.b64decode(text)))
    return (torch.frombuffer(data, dtype=torch.uint8).view(length, length) / 255) ** 2


def test_compressed_attention_round_trip(found):
    compressed = compressed_attention(found.inside.attentions)
    length = len(found.tokens)
    assert len(compressed.heads) == 3 * 4 and compressed.share > 0.99
    for text, square in zip(compressed.heads, found.inside.attentions.flatten(0, 1), strict=True):
        shown = unpacked(text, length)
        kept = shown > 0
        assert (kept.sum(dim=1) <= compressed.kept).all()
        torch.testing.assert_close(shown[kept], square[kept], atol=0.004, rtol=0)
        strongest = square.argmax(dim=1)
        assert kept[torch.arange(length), strongest].all()


def test_compressed_attention_stays_within_its_budget():
    generator = torch.Generator().manual_seed(0)
    attentions = torch.randn(2, 3, 64, 64, generator=generator).softmax(dim=-1)
    found = {
        budget: compressed_attention(attentions, budget) for budget in (10, 4_000, 12_000, 10**6)
    }
    kept = [compressed.kept for compressed in found.values()]
    assert kept[0] == 1 and kept == sorted(set(kept)) and 0.99 <= found[10**6].share < 0.995
    for budget, compressed in found.items():
        assert compressed.kept == 1 or sum(map(len, compressed.heads)) <= budget
        values = attentions.topk(compressed.kept, dim=-1).values
        assert compressed.share == pytest.approx(float(values.sum() / attentions.sum()))


def test_quantized_probabilities():
    given = torch.tensor([0.0, 1e-5, 0.25, 1.0, 1.1])
    assert quantized(given).tolist() == [0, 1, 128, 255, 255]


def test_clean_replaces_characters_that_html_forbids():
    text = "a\x00b\x1b\n\t\x7f\x85\ud800\ufffe\U0001ffffé"
    assert clean(text) == "a␀b␛\n\t␡\ufffd\ufffd\ufffd\ufffdé"


# --- code on the page ----------------------------------------------------------------------------


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("decoder", ["exact", "top20"])
def test_sources_are_the_lines_of_public_functions(decoder, null):
    found = sources(DecodingSettings(decoder=decoder, version_2_with_negative=null))
    keys = [source.key for source in found["candidates"]]
    assert (f"{decoder}_spans" in keys) and ("Prediction" in keys) == null
    for source in (source for group in found.values() for source in group):
        file = (ROOT / source.path).read_text(encoding="utf-8").splitlines()
        there = file[source.first - 1 : source.first - 1 + len(source.lines)]
        assert [line.strip() for line in there] == [line.strip() for line in source.lines]
        assert source.location == f"{source.path}:{source.first}"
        name = source.key.rpartition(".")[2]
        assert not name.startswith("_")
        assert any(f"{kind} {name}" in line for kind in ("def", "class") for line in source.lines)


# --- terminal ------------------------------------------------------------------------------------


def test_terminal_output(found):
    plain = render(found, 60)
    assert "\x1b" not in plain
    answer = found.answer.answer
    assert f"probability {answer.probability:.4f}" in plain
    assert re.search(rf"characters {answer.start}-{answer.end}\b", plain)
    assert re.search(rf"window {found.window + 1} of {len(found.null_scores)}\b", plain)
    layer, head = found.inside.strongest_head
    heads = plain.split("without a head: the largest\n")[1].split("\n\n")[0].splitlines()
    assert heads[0].endswith(f"  layer {layer}, head {head}") and len(heads) == 5
    effects = [float(line.split()[0]) for line in heads]
    largest = found.inside.head_effects.flatten().sort(descending=True).values[:5].tolist()
    assert effects == pytest.approx(largest, abs=1e-4)
    text = plain.split("\n\n")[1].splitlines()[1:]
    assert max(map(len, text)) <= 60
    words = " ".join(text).replace("[", "").replace("]", "")
    assert words.strip("…") in CONTEXT
    colored = render(found, 60, color=True)
    assert "\x1b[1;7m" in colored and colored.count("\x1b[0m") > 5
    for line in colored.splitlines():  # every color is reset
        assert line.count("\x1b[0m") == line.count("\x1b[") / 2


@pytest.mark.parametrize(("filler", "windows"), [("", WINDOWS), (None, WINDOWS), (NUMBERED, None)])
def test_an_ellipsis_marks_omitted_text(explained, filler, windows):
    """Omitted because of its windows or its length; a complete text has no mark."""
    context = CONTEXT if filler is None else f"Ada built it.{filler}"
    e = explained(context=context, windows=windows or WindowSettings(384, 8))
    shown = " ".join(render(e, 60).split("\n\n")[1].splitlines()[1:])
    kept = shown.replace("[", "").replace("]", "").strip("…")
    assert kept in context
    assert (shown[0] == "…") == (not context.startswith(kept))
    assert (shown[-1] == "…") == (not context.endswith(kept))
    assert ("…" in shown) == (filler != "")


def test_top_k_sets_the_number_of_candidates(found):
    rows = {k: len(render(found, 80, k).split("\n\n")[2].splitlines()) for k in (1, 5, 12)}
    assert rows == {1: 6, 5: 6, 12: 13}


def test_control_characters_are_escaped(explained):
    e = explained("Who\x1b]0;title\x07?", "Ada \x1b[2J built\u202e it.\nBen\r did.")
    assert not any(ord(c) < 32 and c != "\n" for c in render(e))
    assert on_one_line("a\x1b[0m\n b\u202ec") == "a\\x1b[0m b\\u202ec"


def test_terminal_output_of_no_answer(explained):
    text = render(explained(decoding=replace(NEVER, n_best_size=3)))
    assert "(no answer)  probability" in text and "no answer above -1e+09" in text
