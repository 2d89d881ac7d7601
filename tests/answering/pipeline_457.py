"""Calls of a question-answering pipeline, and the recorded answers of transformers 4.57.

The tests do not require transformers 4.57, the last version with the pipeline, so its answers are
in tests/fixtures/pipeline-4.57.json. With torch and "transformers==4.57.*" installed, record them
with

    python -m tests.answering.pipeline_457

The models are small and made of integers, so that they are equal on every processor and with every
version of torch; the file has a digest of the models and the calls.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import save_model
from bertqa.model.config import BertConfig
from tests.corpus import PAIRS
from tests.helpers import DATA, TINY, write_tokenizer

RECORDED = DATA / "pipeline-4.57.json"
SHIPPED = Path(__file__).parents[2] / "weights" / "minilm-l6-squad"
SEEDS = {"lower": 3, "cased": 4}

STORY = (
    "Ida Quell mapped the marshes of Tarn in 1874. Her brother Osric, a glassblower, paid for the "
    "boat; their cousin never forgave him. In the spring of 1875 the map was printed in Vessel "
    "Street, three hundred copies on unbleached paper, and IDA QUELL signed each of them. "
)
ASKED = ["Who mapped the marshes?", "What did Osric pay for?", "When was the map printed?"]
SHORT = ["who ran?", "how many?", "in what town was it?"]


def write_model(folder: Path, name: str) -> Path:
    """Write a small checkpoint with random integers as weights."""
    tokenizer = write_tokenizer(folder, lowercase=name == "lower")
    sizes = TINY | {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 384}
    model = BertForQuestionAnswering(BertConfig(**sizes))
    generator = torch.Generator().manual_seed(SEEDS[name])
    for parameter_name, parameter in model.named_parameters():
        drawn = torch.randint(-(2**15), 2**15, parameter.shape, generator=generator)
        is_scale = "norm.weight" in parameter_name
        parameter.data = drawn / 2**16 * 0.7 + (1.0 if is_scale else 0.0)
    save_model(folder, model)
    return folder


def digest(folders: dict[str, Path]) -> str:
    """Compute a digest of the models, their vocabularies and the calls."""
    parts = hashlib.blake2b(digest_size=16)
    for name in SEEDS:
        for file in ("model.safetensors", "vocab.txt"):
            parts.update((folders[name] / file).read_bytes())
    parts.update(repr(CALLS).encode())
    return parts.hexdigest()


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        model: "lower", "cased", or "shipped".
        form: format of the input, see ``FORMS``.
        questions, contexts: of equal length.
        parameters: of the call; ``construction``: of the pipeline.
    """

    model: str
    form: str
    questions: list[str]
    contexts: list[str]
    parameters: dict[str, Any] = field(default_factory=dict)
    construction: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = self.construction | self.parameters
        return "-".join([self.model, self.form, *(f"{k}={v}" for k, v in settings.items())])

    def run(self, qa: Any, make_object: Callable[[str, str], Any]) -> Any:
        """Call a pipeline.

        Args:
            make_object: makes an object with question_text and context_text.
        """
        answer = FORMS[self.form](qa, self.questions, self.contexts, self.parameters, make_object)
        return answer if isinstance(answer, dict | list) else list(answer)


class Rows(Dataset):  # type: ignore[type-arg]
    """A torch dataset."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.rows[number]


def rows(questions: list[str], contexts: list[str]) -> list[dict[str, Any]]:
    pairs = zip(questions, contexts, strict=True)
    return [{"question": question, "context": context} for question, context in pairs]


FORMS: dict[str, Callable[..., Any]] = {
    "keywords": lambda qa, q, c, p, make: qa(question=q[0], context=c[0], **p),
    "positional": lambda qa, q, c, p, make: qa(q[0], c[0], **p),
    "dictionary": lambda qa, q, c, p, make: qa(rows(q, c)[0], **p),
    "dictionaries": lambda qa, q, c, p, make: qa(*rows(q, c), **p),
    "list": lambda qa, q, c, p, make: qa(rows(q, c), **p),
    "tuple": lambda qa, q, c, p, make: qa(tuple(rows(q, c)), **p),
    "lists": lambda qa, q, c, p, make: qa(question=q, context=c, **p),
    "shared": lambda qa, q, c, p, make: qa(question=q, context=c[0], **p),
    "of lists": lambda qa, q, c, p, make: qa({"question": q, "context": c}, **p),
    "X": lambda qa, q, c, p, make: qa(X=rows(q, c), **p),
    "data": lambda qa, q, c, p, make: qa(data=rows(q, c)[0], **p),
    "predict": lambda qa, q, c, p, make: qa.predict(rows(q, c)),
    "transform": lambda qa, q, c, p, make: qa.transform(rows(q, c)[0]),
    "objects": lambda qa, q, c, p, make: qa([*map(make, q, c)], **p),
    "generator": lambda qa, q, c, p, make: qa((row for row in rows(q, c)), **p),
    "data set": lambda qa, q, c, p, make: qa(Rows([r | {"id": 1} for r in rows(q, c)]), **p),
}


SINGLE = {"keywords", "positional", "dictionary", "data", "transform"}  # first question only


def _calls() -> Iterator[Call]:
    windows = [
        {}, {"max_seq_len": 64, "doc_stride": 16}, {"max_seq_len": 48, "doc_stride": 17},
        {"max_seq_len": 40, "doc_stride": 0}, {"max_seq_len": 96}, {"doc_stride": 30},
    ]  # fmt: skip
    texts = [context[:500] for _, context in PAIRS if "[" not in context[:500]]
    for number, text in enumerate(texts):
        for more in range(8):
            i = number * 8 + more
            parameters: dict[str, Any] = dict(windows[i % 6])
            parameters["top_k"] = (1, 2, 3, 7)[i % 4]
            parameters["max_answer_len"] = (15, 1, 4, 40, None)[i % 5]
            parameters["handle_impossible_answer"] = i % 3 == 0
            parameters["align_to_words"] = i % 7 not in (1, 4)
            model = ("lower", "cased")[more % 2]
            yield Call(model, "keywords", [SHORT[i % 3]], [text], parameters)
    three = [texts[2][:300], texts[5][:250], texts[9][:280]]
    for form in FORMS:
        for parameters in ({}, {"top_k": 3, "handle_impossible_answer": True}):
            if form == "predict" and parameters:
                continue
            yield Call("lower", form, SHORT, three, parameters)
            if form != "of lists":  # it returns a list even for one question
                yield Call("shipped", form, ASKED[:1], [STORY], parameters)
    for construction in (
        {"top_k": 2}, {"max_answer_len": 2, "top_k": 4}, {"handle_impossible_answer": True},
        {"max_seq_len": 50, "doc_stride": 12, "align_to_words": False}, {"batch_size": 3},
    ):  # fmt: skip
        yield Call("lower", "lists", SHORT, three, {}, construction)
        yield Call("lower", "lists", SHORT, three, {"top_k": 3, "max_answer_len": 5}, construction)
    for parameters in (
        {"padding": "max_length", "max_seq_len": 128}, {"padding": True}, {"batch_size": 2},
        {"max_question_len": 3}, {"topk": 3}, {"topk": 2, "top_k": 4}, {"num_workers": 0},
        {"batch_size": 2, "padding": "longest", "max_seq_len": 70, "doc_stride": 20},
    ):  # fmt: skip
        yield Call("cased", "lists", SHORT, three, parameters)
    for question in ASKED:
        for text in (STORY, STORY * 9):
            for parameters in ({}, {"top_k": 5}, {"handle_impossible_answer": True, "top_k": 2}):
                yield Call("shipped", "keywords", [question], [text], parameters)
    for text in ("  ", "Quell", "no. No! NO"):
        for impossible in (False, True):
            parameters = {"handle_impossible_answer": impossible, "top_k": 2}
            yield Call("lower", "keywords", SHORT[:1], [text], parameters)


CALLS = list(_calls())


def compact(answer: Any) -> Any:
    """Return an answer without its text, which is a slice of the context."""
    if isinstance(answer, dict):
        return [float(f"{answer['score']:.8g}"), answer["start"], answer["end"]]
    return [compact(each) for each in answer]


def main() -> None:
    """Record the answers of transformers 4.57."""
    import tempfile

    import transformers
    from transformers.data import SquadExample

    assert transformers.__version__.startswith("4.57."), transformers.__version__
    answers = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: write_model(Path(temporary) / name, name) for name in SEEDS}
        folders["shipped"] = SHIPPED
        made: dict[str, Any] = {}
        for call in CALLS:
            key = f"{call.model} {call.construction}"
            made[key] = qa = made.get(key) or transformers.pipeline(
                "question-answering",
                model=str(folders[call.model]),
                device=-1,
                dtype=torch.float32,
                **call.construction,
            )
            answer = call.run(qa, lambda q, c: SquadExample(None, q, c, None, None, None))
            answers.append(compact(answer))
        recorded = {"transformers": transformers.__version__, "digest": digest(folders)}
    lines = ",\n".join(json.dumps(answer, separators=(",", ":")) for answer in answers)
    head = json.dumps(recorded)[:-1]
    RECORDED.write_text(f'{head}, "answers": [\n{lines}\n]}}\n', encoding="utf-8")
    print(len(answers), "calls,", RECORDED.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
