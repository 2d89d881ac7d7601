"""One answerer in several threads at once, as in a web server."""

import gc
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.data.readers import read_examples
from bertqa.settings import WindowSettings
from tests.helpers import STORIES, write_checkpoint

CALLERS = 4


@pytest.fixture
def cores(request: Any) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def qa(tmp_path_factory: pytest.TempPathFactory) -> QuestionAnswerer:
    folder = write_checkpoint(tmp_path_factory.mktemp("threads") / "tiny")
    windows = WindowSettings(96, doc_stride=16)
    return QuestionAnswerer.from_pretrained(folder, windows=windows, device="cpu", precision="fp32")


def ask_at_once(ask: Callable[[], Any]) -> list[tuple[Any, int]]:
    """Return the result of each of several new threads, and its number of torch threads."""
    together = threading.Barrier(CALLERS)

    def call() -> tuple[Any, int]:
        together.wait()
        return ask(), torch.get_num_threads()

    with ThreadPoolExecutor(CALLERS) as pool:
        return [each.result() for each in [pool.submit(call) for _ in range(CALLERS)]]


@pytest.mark.parametrize("cores", [1, 3], indirect=True)
def test_several_threads_get_the_answers_of_one(qa: QuestionAnswerer, cores: int) -> None:
    """Bit for bit; and the number of torch threads does not change."""
    examples = read_examples(STORIES)[:10]  # enough batches for several cores
    questions, contexts = [e.question for e in examples], [e.context for e in examples]
    calls: list[Callable[[], Any]] = [
        lambda: list(qa.answer(examples)),
        lambda: qa(questions[0], contexts[0], top_k=3),
        lambda: qa.read(questions[1], contexts),
        lambda: qa(questions, contexts, handle_impossible_answer=True),
    ]
    for call in calls:
        assert ask_at_once(call) == [(call(), cores)] * CALLERS
    assert torch.get_num_threads() == cores


@pytest.mark.parametrize("cores", [3], indirect=True)
def test_threads_leak_nothing(qa: QuestionAnswerer, cores: int) -> None:
    examples = read_examples(STORIES)[:10]
    sizes, threads = [], threading.active_count()
    tracemalloc.start()
    try:
        for _ in range(5):
            ask_at_once(lambda: [len(p.answers) for p in qa.answer(examples)])
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert threading.active_count() == threads
    # Three rounds of one caller's answers would be 200,000 bytes; caches still grow by 20,000.
    assert sizes[-1] < sizes[1] + 60_000, sizes
