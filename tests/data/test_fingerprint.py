"""The fingerprint of a run's data depends on all contents of the examples, and nothing else."""

import dataclasses

from bertqa.data.squad import Example, data_fingerprint

PLAIN = Example("a", "who, when", "the river", ("the",), (0,))
CHANGED = [
    [dataclasses.replace(PLAIN, id="b")],
    [dataclasses.replace(PLAIN, question="who when")],
    [dataclasses.replace(PLAIN, question="Who, when")],
    [dataclasses.replace(PLAIN, context="the river ")],
    [dataclasses.replace(PLAIN, answers=("the river",))],
    [dataclasses.replace(PLAIN, answers=("the", "river"), answer_starts=(0, 4))],
    [dataclasses.replace(PLAIN, answers=("r",), answer_starts=(4,))],
    [dataclasses.replace(PLAIN, answers=("r",), answer_starts=(8,))],
    [dataclasses.replace(PLAIN, answer_starts=())],
    [dataclasses.replace(PLAIN, answers=(), answer_starts=())],
    [dataclasses.replace(PLAIN, answers=None, answer_starts=())],
    [PLAIN, PLAIN],
    [PLAIN, dataclasses.replace(PLAIN, id="b")],
    [dataclasses.replace(PLAIN, id="b"), PLAIN],
    [],
    # Fields whose concatenated texts are equal.
    [Example("a", "who", "le town")],
    [Example("a", "whole", " town")],
    [Example("aw", "ho", "le town")],
    [Example("a", "', '", "', '")],
    [Example("a", "', '', '", "'")],
    # A lone surrogate, and texts it could be confused with.
    [Example("a", "\ud800", "x")],
    [Example("a", "\\ud800", "x")],
    [Example("a", "\ufffd", "x")],
]


def test_other_data_have_another_fingerprint():
    found = [data_fingerprint(examples) for examples in [[PLAIN], *CHANGED]]
    assert len(set(found)) == len(CHANGED) + 1
    assert all(len(text) == 32 and int(text, 16) >= 0 for text in found)
    assert data_fingerprint([dataclasses.replace(PLAIN)]) == found[0]
