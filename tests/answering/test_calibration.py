"""Temperature and calibration metrics, against plain implementations of their definitions."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.answering.calibration import calibrate, read_calibration, write_calibration
from bertqa.answering.decoding import log_totals, null_logits
from bertqa.answering.evaluation import score
from bertqa.answering.reliability import calibration_error, chance_error, equal_mass_bins
from bertqa.answering.temperature import ScoredQuestions, at_limit, fit_temperature
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example, split_by_article
from bertqa.errors import UserError
from bertqa.settings import WindowSettings
from tests.helpers import STORIES_V2, write_checkpoint

EXAMPLES = [e for e in read_examples(STORIES_V2) if e.context.isascii()][::2]


@pytest.fixture(scope="module", params=[False, True], ids=["v1", "v2"])
def qa(request, tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("calibration") / "tiny")
    loaded = QuestionAnswerer.from_pretrained(folder, device="cpu", precision="fp32")
    loaded.windows = WindowSettings(96, 24, 24)
    loaded.decoding = replace(
        loaded.decoding, version_2_with_negative=request.param, null_score_diff_threshold=4.0
    )
    return loaded


def questions_of(qa):
    """Return questions: one has several gold answers; with "no answer", some have none."""
    given = [e for e in EXAMPLES if e.answers or qa.decoding.version_2_with_negative]
    first = next(i for i, example in enumerate(given) if example.answers)
    other = given[first].context.split()[3]
    given[first] = replace(
        given[first],
        answers=(*given[first].answers, other, other),
        answer_starts=(*given[first].answer_starts, *[given[first].context.index(other)] * 2),
    )
    return given


def with_high_null(scores):
    """Raise the null scores, so that "no answer" is about as probable as all spans together."""
    start, end = null_logits(scores)
    raised = scores.start_logits.clone()
    raised[scores.cls] += (log_totals(scores, 30, 1.0) - start - end)[scores.question].float()
    return replace(scores, start_logits=raised)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_is_the_negative_log_likelihood_of_the_gold_answers(qa, temperature):
    examples = questions_of(qa)
    scored = ScoredQuestions(qa, examples, "x")
    scored.settings = replace(scored.settings, n_best_size=10**5)  # all answers
    scored.blocks = [(block, with_high_null(scores)) for block, scores in scored.blocks]
    found, predictions = scored.losses(temperature).tolist(), scored.predictions(temperature)
    wanted = []
    for example, prediction in zip(examples, predictions, strict=True):
        golds = example.positions if example.answers else {(0, 0)}
        chances = [a.probability for a in prediction.answers if (a.start, a.end) in golds]
        wanted.append(-math.log(math.fsum(chances)) if chances else math.inf)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert sum(map(math.isfinite, wanted)) > len(wanted) / 2


def test_the_fitted_temperature_has_the_lowest_loss(qa):
    examples = questions_of(qa)
    scored = ScoredQuestions(qa, examples, "x")
    best = fit_temperature(scored, {example.id for example in examples}, "x")
    usable = scored.losses(1.0).isfinite()
    losses = [float(scored.losses(best * factor)[usable].mean()) for factor in (0.97, 1, 1.03)]
    assert min(losses) == losses[1] or best == pytest.approx(10, rel=1e-2)  # the limit


@pytest.mark.parametrize("lowest", [0.11, 0.7, 1.0, 6.3])
def test_only_the_given_questions_are_fitted(lowest):
    """The second has another optimum; the third has no gold answer that is a span."""

    def losses(temperature):
        own = [math.log(temperature / wanted) ** 2 for wanted in (lowest, 5 * lowest)]
        return torch.tensor([*own, math.inf])

    examples = [Example(name, "q", "c") for name in "abc"]
    scored = SimpleNamespace(examples=examples, losses=losses)
    assert fit_temperature(scored, {"a", "c"}, "x") == pytest.approx(lowest, rel=2e-3)
    with pytest.raises(UserError, match="must have gold answers within the windows"):
        fit_temperature(scored, {"c"}, "x")


def test_fitting_and_measuring_use_different_articles(qa):
    examples = questions_of(qa)
    found, predictions = calibrate(qa, examples, "x")
    _, measuring = split_by_article(examples, 50)
    assert found.fitted_on + found.after.questions == len(examples)
    assert found.after.questions == len(measuring)
    wrong = {e.id: e.context[: len(e.answers[0])] for e in measuring if e.answers}
    spoilt = [
        replace(e, answers=(wrong[e.id],), answer_starts=(0,)) if e.id in wrong else e
        for e in examples
    ]
    other, _ = calibrate(qa, spoilt, "x")
    assert other.temperature == found.temperature
    assert other.after.loss != found.after.loss
    assert [p.id for p in predictions] == [example.id for example in examples]


def test_the_metrics_match_the_answers(qa):
    examples = questions_of(qa)
    found, predictions = calibrate(qa, examples, "x")
    before = list(qa.answer(examples))
    assert [p.text for p in before] == [p.text for p in predictions]
    assert score(examples, before, qa.decoding) == score(examples, predictions, qa.decoding)
    ids = {example.id for example in split_by_article(examples, 50)[1]}
    answered = [p for p in predictions if p.id in ids and p.text]
    assert found.after.coverage[0].answered == len(answered) / len(ids)
    for reliability, temperature in ((found.before, 1.0), (found.after, found.temperature)):
        assert reliability.temperature == temperature
        assert sum(each.count for each in reliability.bins) == len(ids)
        for point in reliability.coverage[::5]:  # compare with an answerer's score_threshold
            qa.decoding = replace(
                qa.decoding, temperature=temperature, score_threshold=point.threshold
            )
            texts = [p.text for p in qa.answer(examples) if p.id in ids]
            assert point.answered == pytest.approx(sum(map(bool, texts)) / len(ids), abs=1e-9)
        qa.decoding = replace(qa.decoding, temperature=1.0, score_threshold=0.0)
        shares = [point.answered for point in reliability.coverage]
        assert shares == sorted(shares, reverse=True) and shares[-1] < shares[0]
        assert reliability.ece == calibration_error(reliability.bins)


# --- the calibration error -----------------------------------------------------------------------


def test_the_calibration_error_by_hand():
    probabilities, right = [0.9, 0.2, 0.8, 0.4], [True, False, False, True]
    low, high = equal_mass_bins(probabilities, right, 2)
    assert (low.count, low.probability, low.accuracy) == (2, pytest.approx(0.3), 0.5)
    assert (high.count, high.probability, high.accuracy) == (2, pytest.approx(0.85), 0.5)
    assert calibration_error([low, high]) == pytest.approx((0.2 + 0.35) / 2)
    assert calibration_error(equal_mass_bins([1.0, 0.0], [True, False])) == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_bins_have_equal_counts(answers):
    bins = equal_mass_bins(*zip(*answers, strict=True))
    counts = [each.count for each in bins]
    assert sum(counts) == len(answers) and max(counts) - min(counts) <= 1
    assert len(bins) == min(15, len(answers))
    assert [each.probability for each in bins] == sorted(each.probability for each in bins)
    overall = sum(right for _, right in answers) / len(answers)
    assert sum(each.count * each.accuracy for each in bins) / len(answers) == pytest.approx(overall)


@pytest.mark.parametrize("count", [300, 3000])
def test_the_calibration_error_by_chance_is_that_of_perfect_calibration(count):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(count, generator=generator, dtype=torch.float64)
    drawn = []
    for _ in range(100):
        right = torch.rand(count, generator=generator, dtype=torch.float64) < probabilities
        drawn.append(equal_mass_bins(probabilities.tolist(), right.tolist()))
    expected = sum(map(calibration_error, drawn)) / len(drawn)
    assert chance_error(drawn[0]) == pytest.approx(expected, rel=0.05)


# --- rejected input, and the file ----------------------------------------------------------------


def test_unsuitable_questions_are_rejected(qa):
    examples = questions_of(qa)
    one_article = [e for e in examples if e.title == examples[0].title]
    with pytest.raises(UserError, match=r"x must have questions .* two articles.*got one"):
        calibrate(qa, one_article, "x")
    with pytest.raises(UserError, match="must have gold answers"):
        calibrate(qa, [replace(e, answers=None, answer_starts=()) for e in examples], "x")
    if not qa.decoding.version_2_with_negative:
        with pytest.raises(UserError, match="must have an answer to every question"):
            calibrate(qa, EXAMPLES, "x")


def test_a_written_calibration_can_be_read(qa, tmp_path):
    assert read_calibration(tmp_path) is None
    found, _ = calibrate(qa, questions_of(qa), "x")
    write_calibration(tmp_path, found)
    assert read_calibration(tmp_path) == found
    entries = json.loads((tmp_path / "calibration.json").read_text())
    before = entries["before"]
    for broken in (
        {},
        entries | {"after": 3},
        entries | {"fitted_on": "all"},
        *(
            entries | {"before": before | change}
            for change in (
                {"ece": None}, {"ece": math.nan}, {"temperature": "1"}, {"bins": []}, {"bins": [1]},
                {"more": 1}, {"bins": [before["bins"][0] | {"count": [3]}]}, {"coverage": {"a": 1}},
            )
        ),
    ):  # fmt: skip
        (tmp_path / "calibration.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match=r"calibration\.json: must be as"):
            read_calibration(tmp_path)


@pytest.mark.parametrize(
    ("temperature", "is_limit"), [(0.1001, True), (0.11, False), (1.0, False), (9.999, True)]
)
def test_a_temperature_at_the_limit_of_the_search_is_detected(
    temperature: float, is_limit: bool
) -> None:
    assert at_limit(temperature) == is_limit
