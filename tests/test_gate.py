"""200 questions written for this project, of many kinds: that they are sound."""

from collections import Counter

from bertqa.readers import read_examples
from bertqa.squad import check_answers, check_examples
from tests.helpers import DATA

GATE = DATA / "gate.json"


def test_the_questions_are_sound() -> None:
    examples = read_examples(GATE)
    check_examples(examples, str(GATE))  # no id twice, nothing blank
    check_answers(examples, str(GATE))  # every answer is where it says
    assert len(examples) == 200
    assert len({(example.question, example.context) for example in examples}) == 200
    for example in examples:
        assert example.answers and all(text == text.strip() for text in example.answers)


def test_the_questions_are_of_many_kinds() -> None:
    examples = read_examples(GATE)
    kinds = Counter(example.id.rsplit("-", 1)[0] for example in examples)
    assert kinds.keys() == {
        "who", "when", "date", "how-many", "how-much", "why", "where", "what", "which", "how",
        "name", "distractor", "long", "seam",
    }  # fmt: skip
    assert min(kinds.values()) >= 6
    words = [len(context.split()) for context in {example.context for example in examples}]
    assert min(words) < 110 and sum(count > 600 for count in words) >= 5
