"""Exact match and F1 by the official SQuAD rules, and the exact no-answer threshold of v2.0.

Follows Rajpurkar et al. 2016 (SQuAD 1.1, `evaluate-v1.1.py`) and Rajpurkar et al. 2018
(SQuAD 2.0, `evaluate-v2.0.py`). Both compare normalised strings and take the best gold answer
of each question. They differ in this:

                                          v1.1                  v2.0
    F1 where a side normalises to ""      0                     1 if both do, else 0
    gold answers that normalise to ""     kept                  dropped; none left means [""]
    a question without gold answers       an error              unanswerable: gold is [""]
    figures                               exact_match, f1       exact, f1, per kind, best_*

Where `evaluate-v2.0.py` is at fault or gives no figure, this module says what it does instead:
`evaluate_v2` on missing predictions and on empty gold answers, `threshold_curve` on equal null
scores.
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

# ASCII only: the scripts leave “ ” — ¿ in place, and so must every figure compared with theirs.
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:an?|the)\b")


class ThresholdPoint(NamedTuple):
    """Figures in percent when a question is answered "" iff its null score > threshold."""

    threshold: float
    exact: float
    f1: float


def normalize_answer(text: str) -> str:
    """Lower-case, drop ASCII punctuation, then the words a, an, the; squeeze whitespace.

    The order matters: "a.n" becomes "an" and vanishes; "Pan-Am" becomes one word, "panam".
    """
    text = text.lower().translate(_WITHOUT_PUNCTUATION)
    # A blank in the article's place: "the" may touch its neighbours, as in "off—the—record".
    return " ".join(_ARTICLE.sub(" ", text).split())


def exact_match(prediction: str, gold: str) -> float:
    """1.0 if both texts are equal once normalised, else 0.0 (v1.1 and v2.0 alike)."""
    return float(normalize_answer(prediction) == normalize_answer(gold))


def f1(prediction: str, gold: str) -> float:
    """F1 of the two bags of normalised words by v1.1: 0.0 if they share none, even if both empty.

    So "The" against "The" has exact match 1 and F1 0.
    """
    predicted, wanted = (normalize_answer(text).split() for text in (prediction, gold))
    shared = (Counter(predicted) & Counter(wanted)).total()
    # 2PR / (P + R) with P = shared / len(predicted) and R = shared / len(wanted)
    return 2 * shared / (len(predicted) + len(wanted)) if shared else 0.0


def f1_v2(prediction: str, gold: str) -> float:
    """F1 by v2.0: as `f1`, but 1.0 if both texts normalise to nothing."""
    if not normalize_answer(prediction) and not normalize_answer(gold):
        return 1.0
    return f1(prediction, gold)


def evaluate_v1(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """The figures of `evaluate-v1.1.py`: exact_match and f1 in percent, total.

    predictions: question id -> answer text; ids that are not in `references` are ignored.
    references: question id -> gold answers. One without a prediction counts as wrong.
    Raises UserError if there are no references, or if one has no gold answer.
    """
    _require_references(references)
    for qid, golds in references.items():
        if not golds:
            raise UserError(
                f"question {qid!r} has no gold answer, which SQuAD v1.1 does not allow: "
                "evaluate this data by the v2.0 rules"
            )
    return evaluate_pairs(((predictions.get(q), g) for q, g in references.items()), v2=False)


def evaluate_v2(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    null_scores: Mapping[str, float] | None = None,
    best_non_null: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """The figures of `evaluate-v2.0.py`, in percent, with the script's keys.

    exact, f1, total; the same with HasAns_ and NoAns_ for answerable and unanswerable questions,
    where there are any. With `null_scores` and `best_non_null` (see `threshold_curve`) also
    best_exact, best_exact_thresh, best_f1, best_f1_thresh: the highest figure over all
    thresholds, and of the thresholds that reach it the lowest. `predictions` plays no part there.

    predictions: question id -> answer text, "" for no answer. A question without a prediction
    counts as wrong, also if it is unanswerable; the script leaves it out of the total and then
    fails. A question whose gold answers all normalise to nothing is unanswerable; the script
    gives it the gold answer "" too, but counts it under HasAns.
    Raises UserError if there are no references, if only one of `null_scores` and
    `best_non_null` is given, and as `threshold_curve` does.
    """
    _require_references(references)
    pairs = ((predictions.get(qid), golds) for qid, golds in references.items())
    figures = evaluate_pairs(pairs, v2=True)
    return figures | _best_figures(references, null_scores, best_non_null)


def evaluate_pairs(
    pairs: Iterable[tuple[str | None, Sequence[str] | None]], *, v2: bool
) -> dict[str, float]:
    """The figures of `evaluate_v1`, or of `evaluate_v2` without its best_*, in constant memory.

    pairs: the answer to a question, None if there is none, and the question's gold answers. Where
    those are None, or by v1.1 none, the question does not count; ``without_gold`` is then how many
    there are, if any counts.
    """
    sums: dict[str, list[Fraction]] = {}  # of a kind of question: EM, F1, how many
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
    """EM and F1 of each question, 0 to 1, by the rules of v1.1 or v2.0; figures are their means.

    predictions, references: as in `evaluate_v1` and `evaluate_v2`.
    """
    return {qid: _pair_scores(predictions.get(qid), golds, v2) for qid, golds in references.items()}


def _pair_scores(answer: str | None, golds: Sequence[str], v2: bool) -> tuple[float, float]:
    """EM and F1 of an answer, each against its best gold answer; 0.0 where there is none."""
    if answer is None:
        return 0.0, 0.0
    if v2:  # gold answers that say something; "" for an unanswerable question
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
    """The v2.0 figures at every threshold that makes a difference, in ascending order.

    null_scores: question id -> score of no answer minus score of the best answer (any finite
    scale; the script's null_odds.json). best_non_null: question id -> the best answer that is
    not "". The first point lies below all scores, where every question is answered ""; then
    comes one point per distinct score, the last of which answers them all.
    unanswerable_share: weight the questions of either kind so that those without an answer make
    up this share of all, between 0 and 1; None counts every question once.

    No threshold separates equal scores, so their questions turn together. The script turns them
    one by one and can report a best figure which its threshold does not give. Here each point
    is, to the last bit, what `evaluate_v2` says of the predictions made with its threshold, if no
    question is weighted. Takes O(n log n). Raises UserError if there are no references, if one has
    no null score or one that is not finite, or if questions of one kind alone are to be weighted.
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
        raise UserError(
            "there are no questions to evaluate, as the references are empty: give one or more"
        )


def _best_figures(
    references: Mapping[str, Sequence[str]],
    null_scores: Mapping[str, float] | None,
    best_non_null: Mapping[str, str] | None,
) -> dict[str, float]:
    """The four best_* figures; none if there are no null scores."""
    if null_scores is None and best_non_null is None:
        return {}
    if null_scores is None or best_non_null is None:
        raise UserError("the best threshold needs both null_scores and best_non_null: give both")
    curve = threshold_curve(references, null_scores, best_non_null)
    figures: dict[str, float] = {}
    for name in ("exact", "f1"):
        # max keeps the first of equals: the lowest threshold, as in the script.
        best = max(curve, key=attrgetter(name))
        figures |= {f"best_{name}": getattr(best, name), f"best_{name}_thresh": best.threshold}
    return figures


def _null_score(null_scores: Mapping[str, float], qid: str) -> float:
    if qid not in null_scores:
        raise UserError(f"question {qid!r} has no null score: give one for every question")
    score = float(null_scores[qid])
    if not math.isfinite(score):
        raise UserError(f"the null score of question {qid!r} is {score}: give a finite one")
    return score


def _below(score: float) -> float:
    # One less, so that a threshold written with few digits still lies below; among scores so
    # large that one less changes nothing, the next smaller float.
    return min(score - 1.0, math.nextafter(score, -math.inf))


def _weights(
    references: Mapping[str, Sequence[str]], unanswerable_share: float | None
) -> Mapping[str, Fraction | int]:
    """What each question counts; the sum is their number."""
    if unanswerable_share is None:
        return dict.fromkeys(references, 1)
    has_answer = {qid: any(map(normalize_answer, golds)) for qid, golds in references.items()}
    numbers, share = Counter(has_answer.values()), Fraction(unanswerable_share)
    if len(numbers) < 2:
        raise UserError(
            f"the questions must be of both kinds to be weighted to a share of "
            f"{unanswerable_share} without an answer, got one kind alone: give others"
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
    """Percentages with every question answered "", then as one group after another is answered.

    The running sum is kept in fractions: exact, so that no rounding gathers over the groups.

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
