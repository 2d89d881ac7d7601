"""Fixtures: a tiny random model and explanations of its answers to one question."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bertqa.answering.answerer import QuestionAnswerer, make_examples
from bertqa.answering.answers import Prediction
from bertqa.data.tokenization import BertTokenizer
from bertqa.explain.explainer import explain
from bertqa.explain.explanation import Explanation
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import load_checkpoint
from bertqa.runtime import Runtime
from bertqa.settings import DecodingSettings, WindowSettings
from tests.helpers import write_checkpoint

QUESTION = "Who built the quay?"
CONTEXT = (
    "Ada built the quay of the river town in 1642. Ben swept it, and when the ship was in port, "
    "the man counted how many re\u0301sume\u0301s were on board. What "
    "Eve \U0001f469\u200d\U0001f680 did there, who knows?"
)
# A visible vowel sign that the tokenizer drops, because it classifies it as an accent.
NO_TOKENS = "\u1734"
WINDOWS = WindowSettings(48, 8)
STEPS = 3
CPU = Runtime(torch.device("cpu"))
NEGATIVE = DecodingSettings(version_2_with_negative=True)
NEVER = replace(NEGATIVE, null_score_diff_threshold=-1e9)

Explain = Callable[..., Explanation]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("explain") / "tiny")


@pytest.fixture(scope="session")
def model(folder: Path) -> BertForQuestionAnswering:
    return load_checkpoint(folder)[0]


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> BertTokenizer:
    return BertTokenizer.load(folder)


@pytest.fixture(scope="session")
def explained(model: BertForQuestionAnswering, tokenizer: BertTokenizer) -> Explain:
    def made(question: str = QUESTION, context: str = CONTEXT, **settings: object) -> Explanation:
        chosen = {"windows": WINDOWS, "steps": STEPS} | settings
        return explain(model, tokenizer, question, context, **chosen)

    return made


@pytest.fixture(scope="session")
def found(explained: Explain) -> Explanation:
    return explained()


@pytest.fixture(scope="session")
def rough(model: BertForQuestionAnswering, tokenizer: BertTokenizer) -> Prediction:
    """The answer of a model with weights rounded to bf16."""
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.bfloat16().float())
    qa = QuestionAnswerer(rounded, tokenizer, WINDOWS, DecodingSettings(), CPU)
    (prediction,) = qa.answer(make_examples(QUESTION, CONTEXT))
    return prediction


@pytest.fixture(scope="session")
def other_answer(rough: Prediction) -> Prediction:
    """A prediction in bf16 whose answer is not the one of float32."""
    return replace(rough, text=rough.answers[1].text)
