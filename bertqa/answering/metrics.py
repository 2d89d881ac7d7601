"""Exact match and F1 by the official SQuAD rules, and the exact no-answer threshold of v2.0.

Follows Rajpurkar et al. 2016 (SQuAD 1.1, ``evaluate-v1.1.py``) and Rajpurkar et al. 2018
(SQuAD 2.0, ``evaluate-v2.0.py``). Both compare normalized strings and take the maximum over the
gold answers of each question. They differ as follows:

                                          v1.1                  v2.0
    F1 if a text normalizes to ""         0                     1 if both do, else 0
    gold answers that normalize to ""     kept                  dropped; none left means [""]
    a question without gold answers       an error              unanswerable: gold is [""]
    metrics                               exact_match, f1       exact, f1, per kind, best_*

Deviations from ``evaluate-v2.0.py``, where it is wrong or fails, are documented in ``evaluate_v2``
(missing predictions, empty gold answers) and ``threshold_curve`` (ties of null scores).
"""

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from bertqa.errors import UserError

# ASCII only: the scripts keep “ ” — ¿, and comparable metrics must do the same.
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:an?|the)\b")


class ThresholdPoint(NamedTuple):
    """EM and F1 in percent if a question is answered "" iff its null score > threshold."""

    threshold: float
    exact: float
    f1: float


def normalize_answer(text: str) -> str:
    """Lowercase, remove ASCII punctuation, then the words a, an, the; collapse whitespace.

    The order matters: "a.n" becomes "an" and is removed; "Pan-Am" becomes one word, "panam".
    """
    text = text.lower().translate(_WITHOUT_PUNCTUATION)
    # Replace an article by a space, as it may touch its neighbours: "off—the—record".
    return " ".join(_ARTICLE.sub(" ", text).split())


def exact_match(prediction: str, gold: str) -> float:
    """Return 1.0 if both texts are equal after normalization, else 0.0 (v1.1 and v2.0)."""
    return float(normalize_answer(prediction) == normalize_answer(gold))


def f1(prediction: str, gold: str) -> float:
    """Return the v1.1 F1 of two bags of normalized words: 0.0 if they share none or are empty.

    So "The" and "The" have exact match 1 and F1 0.
    """
    predicted, wanted = (normalize_answer(text).split() for text in (prediction, gold))
    shared = (Counter(predicted) & Counter(wanted)).total()
    # 2PR / (P + R) with P = shared / len(predicted) and R = shared / len(wanted)
    return 2 * shared / (len(predicted) + len(wanted)) if shared else 0.0


def f1_v2(prediction: str, gold: str) -> float:
    """Return the v2.0 F1: as ``f1``, but 1.0 if both texts normalize to ""."""
    if not normalize_answer(prediction) and not normalize_answer(gold):
        return 1.0
    return f1(prediction, gold)


def evaluate_v1(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Compute the metrics of ``evaluate-v1.1.py``: exact_match and f1 in percent, total.

    Args:
        predictions: question id -> answer text; ids that are not in ``references`` are ignored.
        references: question id -> gold answers. Questions without a prediction count as wrong.

    Raises:
        UserError: there are no references, or one has no gold answer.
    """
    _require_references(references)
    for qid, golds in references.items():
        if not golds:
            raise UserError(
                f"question {qid!r}: must have a gold answer in SQuAD v1.1, got none: evaluate this "
                "data as v2.0"
            )
    return evaluate_pairs(((predictions.get(q), g) for q, g in references.items()), v2=False)


def evaluate_v2(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    null_scores: Mapping[str, float] | None = None,
    best_non_null: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Compute the metrics of ``evaluate-v2.0.py``, in percent, with the script's keys.

    Args:
        predictions: question id -> answer text, "" for no answer. Questions without a prediction
            count as wrong, even if unanswerable; the script drops them from the total and then
            fails.
        references: question id -> gold answers. Questions whose gold answers all normalize to ""
            are unanswerable; the script also gives them the gold answer "", but counts them under
            HasAns.
        null_scores, best_non_null: see ``threshold_curve``.

    Returns:
        exact, f1, total; the same with HasAns_ and NoAns_ for answerable and unanswerable
        questions, if there are any. With ``null_scores`` also best_exact, best_exact_thresh,
        best_f1, best_f1_thresh: the maximum over all thresholds, and the lowest threshold that
        reaches it; these do not depend on ``predictions``.

    Raises:
        UserError: there are no references, only one of ``null_scores`` and ``best_non_null`` is
            given, or as in ``threshold_curve``.
    """
    _require_references(references)
    pairs = ((predictions.get(qid), golds) for qid, golds in references.items())
    figures = evaluate_pairs(pairs, v2=True)
    return figures | _best_figures(references, null_scores, best_non_null)


def evaluate_pairs(
    pairs: Iterable[tuple[str | None, Sequence[str] | None]], *, v2: bool
) -> dict[str, float]:
    """Compute the metrics of ``evaluate_v1``, or of ``evaluate_v2`` without best_*, as a stream.

    Args:
        pairs: the answer to a question, or None, and its gold answers. Questions whose gold answers
            are None, or empty in v1.1, do not count; ``without_gold`` is their number, if others
            count.
    """
    sums: dict[str, list[Fraction]] = {}  # kind of question -> EM, F1, count
    without_gold = 0
    for answer, golds in pairs:
        if golds is None or not (golds or v2):
            without_gold += 1
            continue
        scores = (*_pair_scores(answer, golds, v2), 1)
        kind = "HasAns_" if any(map(normalize_answer, golds)) else "NoAns_"
        for prefix in ("", kind) if v2 else ("",):
            before = sums.setdefault(prefix, [Fraction(0)] * 3)
            sums[prefix] = [x + Fraction(y) for x, y in zip(before, scores, strict=True)]
    figures: dict[str, float] = {}
    for prefix in sorted(sums, key=["", "HasAns_", "NoAns_"].index):
        exact, f1_sum, total = map(float, sums[prefix])
        figures[f"{prefix}{'exact' if v2 else 'exact_match'}"] = 100 * exact / total
        figures[f"{prefix}f1"] = 100 * f1_sum / total
        figures[f"{prefix}total"] = total
    if figures and without_gold:
        figures["without_gold"] = float(without_gold)
    return figures


def question_scores(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], *, v2: bool = False
) -> dict[str, tuple[float, float]]:
    """Return EM and F1 of each question, from 0 to 1, as in v1.1 or v2.0.

    Args:
        predictions, references: as in ``evaluate_v1`` and ``evaluate_v2``.
    """
    return {qid: _pair_scores(predictions.get(qid), golds, v2) for qid, golds in references.items()}


def _pair_scores(answer: str | None, golds: Sequence[str], v2: bool) -> tuple[float, float]:
    """Return EM and F1 of an answer, each the maximum over the gold answers; 0.0 for None."""
    if answer is None:
        return 0.0, 0.0
    if v2:  # non-empty gold answers; "" for an unanswerable question
        golds = [gold for gold in golds if normalize_answer(gold)] or [""]
    exact, overlap = (
        max(metric(answer, gold) for gold in golds) for metric in (exact_match, f1_v2 if v2 else f1)
    )
    return exact, overlap


def threshold_curve(
    references: Mapping[str, Sequence[str]],
    null_scores: Mapping[str, float],
    best_non_null: Mapping[str, str],
    unanswerable_share: float | None = None,
) -> list[ThresholdPoint]:
    """Compute the v2.0 metrics at every distinct threshold, in ascending order.

    No threshold separates ties, so their questions change together. The script changes them one by
    one, and can report a best value that its threshold does not reach. Here, without weights, each
    point equals ``evaluate_v2`` of the predictions at its threshold, bit for bit. O(n log n).

    Args:
        references: question id -> gold answers.
        null_scores: question id -> null score minus score of the best span (any finite scale; the
            script's null_odds.json).
        best_non_null: question id -> the best answer that is not "".
        unanswerable_share: weight the questions so that this fraction of them, between 0 and 1, is
            unanswerable; None weights all equally.

    Returns:
        The first point is below all scores, where every question is answered ""; then follows one
        point per distinct score, the last of which answers all questions with a span.

    Raises:
        UserError: there are no references, a null score is missing or not finite, or all questions
            to be weighted are answerable, or all unanswerable.
    """
    _require_references(references)
    scores = {qid: _null_score(null_scores, qid) for qid in references}
    ascending = sorted(references, key=scores.__getitem__)
    groups = [list(group) for _, group in groupby(ascending, key=scores.__getitem__)]
    thresholds = [_below(scores[ascending[0]]), *(scores[group[0]] for group in groups)]
    silent = question_scores(dict.fromkeys(references, ""), references, v2=True)
    spoken = question_scores(best_non_null, references, v2=True)
    weights = _weights(references, unanswerable_share)
    exact, overlap = (_sweep(which, silent, spoken, groups, weights) for which in (0, 1))
    return [ThresholdPoint(*point) for point in zip(thresholds, exact, overlap, strict=True)]


def _require_references(references: Mapping[str, Sequence[str]]) -> None:
    if not references:
        raise UserError("references must contain at least one question, got none")


def _best_figures(
    references: Mapping[str, Sequence[str]],
    null_scores: Mapping[str, float] | None,
    best_non_null: Mapping[str, str] | None,
) -> dict[str, float]:
    """Return the four best_* metrics; none without null scores."""
    if null_scores is None and best_non_null is None:
        return {}
    if null_scores is None or best_non_null is None:
        raise UserError("null_scores and best_non_null require each other: pass both or neither")
    curve = threshold_curve(references, null_scores, best_non_null)
    figures: dict[str, float] = {}
    for name in ("exact", "f1"):
        # max breaks ties by the first: the lowest threshold, as in the script.
        best = max(curve, key=attrgetter(name))
        figures |= {f"best_{name}": getattr(best, name), f"best_{name}_thresh": best.threshold}
    return figures


def _null_score(null_scores: Mapping[str, float], qid: str) -> float:
    if qid not in null_scores:
        raise UserError(f"question {qid!r}: must have a null score, got none")
    score = float(null_scores[qid])
    if not math.isfinite(score):
        raise UserError(f"question {qid!r}: its null score must be finite, got {score}")
    return score


def _below(score: float) -> float:
    # One less, so that a threshold rounded to few digits is still below; for scores so large that
    # one less changes nothing, the next smaller float.
    return min(score - 1.0, math.nextafter(score, -math.inf))


def _weights(
    references: Mapping[str, Sequence[str]], unanswerable_share: float | None
) -> Mapping[str, Fraction | int]:
    """Return the weight of each question; the sum is their number."""
    if unanswerable_share is None:
        return dict.fromkeys(references, 1)
    has_answer = {qid: any(map(normalize_answer, golds)) for qid, golds in references.items()}
    numbers, share = Counter(has_answer.values()), Fraction(unanswerable_share)
    if len(numbers) < 2:
        raise UserError(
            f"the questions must be both answerable and unanswerable to be weighted to a share of "
            f"{unanswerable_share}, got only one kind"
        )
    of_kind = {
        has: kind_share * len(references) / numbers[has]
        for has, kind_share in ((True, 1 - share), (False, share))
    }
    return {qid: of_kind[has] for qid, has in has_answer.items()}


def _sweep(
    which: int,
    silent: Mapping[str, Sequence[float]],
    spoken: Mapping[str, Sequence[float]],
    groups: Iterable[Sequence[str]],
    weights: Mapping[str, Fraction | int],
) -> list[float]:
    """Return percentages with all questions answered "", then with each further group answered.

    The running sum uses fractions, so that rounding errors do not accumulate.

    Args:
        which: 0 for EM, 1 for F1.
    """
    total = Fraction(0)
    total += sum(weights[qid] * Fraction(scores[which]) for qid, scores in silent.items())
    percentages = [100 * float(total) / len(silent)]
    for group in groups:
        total += sum(
            weights[qid] * (Fraction(spoken[qid][which]) - Fraction(silent[qid][which]))
            for qid in group
        )
        percentages.append(100 * float(total) / len(silent))
    return percentages
