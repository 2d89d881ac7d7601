"""What benchmarks/decoding.py times: scores of all windows to n-best lists with their texts.

Every contender gets the same windows with the same scores, from a folder that ``write_job`` has
filled, in the form that its own code takes; putting them into that form does not count.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from bertqa.data.labels import LabelledWindows

N_BEST, LONGEST = 20, 30  # run_qa's defaults


# --- the job, written by the command -------------------------------------------------------------


def write_job(source: Path, model: Path, folder: Path, trained: bool) -> int:
    """Write what all contenders work on; how many questions it has.

    Args:
        trained: the scores are the model's; else they are drawn.
    """
    import torch

    from bertqa.data.batching import collate
    from bertqa.data.labels import make_labelled_windows
    from bertqa.data.readers import read_examples
    from bertqa.data.tokenization import BertTokenizer
    from bertqa.settings import WindowSettings

    examples = read_examples(source)
    tokenizer = BertTokenizer.load(model)
    windows = make_labelled_windows(examples, tokenizer, WindowSettings())
    stream = collate(windows, torch.arange(len(windows)))
    start, end = _model_scores(windows, model) if trained else _drawn_scores(windows)
    context = stream.token_type_ids.bool()
    context[windows.lengths.cumsum(0) - 1] = False  # the final [SEP]
    rows = _context_rows(windows)
    np.savez(
        folder / "windows.npz",
        start=start.numpy(),
        end=end.numpy(),
        tokens=np.array(tokenizer.tokens(stream.input_ids.tolist())),
        example=windows.example.numpy(),
        length=windows.lengths.numpy(),
        place=windows.context_starts.numpy(),
        first=windows.first.numpy(),
        character=torch.zeros_like(stream.input_ids)
        .masked_scatter(context, windows.contexts.starts[rows].long())
        .numpy(),
    )
    texts = [(example.id, example.question, example.context) for example in examples]
    lower = bool(tokenizer.settings.get("do_lower_case", True))
    job = {"source": str(source), "model": str(model), "lower": lower, "examples": texts}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return len(examples)


def _context_rows(windows: "LabelledWindows") -> "Tensor":
    """The rows of ``windows.contexts`` that the windows hold, window after window."""
    import torch

    first = windows.contexts.bounds[windows.context_of[windows.example]] + windows.first
    count = windows.count.long()
    window = torch.arange(len(count)).repeat_interleave(count)
    return first[window] + torch.arange(len(window)) - (count.cumsum(0) - count)[window]


def _drawn_scores(windows: "LabelledWindows") -> tuple["Tensor", "Tensor"]:
    """Scores like a trained model's: a few high ones, at the ends of words, the answer's first.

    Drawn for the tokens of each question's context, so that two windows that share a token give
    it almost the same score.
    """
    import torch

    draw = torch.Generator().manual_seed(0)
    rows = _context_rows(windows)
    number = torch.arange(len(windows)).repeat_interleave(windows.count)
    owner = windows.example[number].long()
    starts, ends = windows.contexts.starts, windows.contexts.ends
    begins = torch.ones(len(starts), dtype=torch.bool)
    begins[1:] = starts[1:] != ends[:-1]
    stops = torch.ones_like(begins)
    stops[:-1] = ends[:-1] != starts[1:]
    place = rows - windows.contexts.bounds[windows.context_of[owner]]
    longest = int(windows.contexts.lengths.max())
    in_context = torch.arange(int(windows.lengths.sum())) - (
        windows.lengths.cumsum(0) - windows.lengths + windows.context_starts
    ).repeat_interleave(windows.lengths)
    held = (in_context >= 0) & (in_context < windows.count.repeat_interleave(windows.lengths))
    scores = []
    for borders, label in ((begins, windows.start_position), (stops, windows.end_position)):
        of_token = -8 + 1.5 * torch.randn(len(windows.context_of) * longest, generator=draw)
        peak = torch.rand(len(of_token), generator=draw) < 0.06
        of_token[peak] += 9 * torch.rand(int(peak.sum()), generator=draw)
        drawn = of_token[owner * longest + place]
        drawn += 0.2 * torch.randn(len(drawn), generator=draw) - 4.0 * ~borders[rows]
        answer = (label - windows.context_starts + windows.first)[number]
        drawn += 9.0 * ((place == answer) & (label[number] > 0))
        stream = -8 + 1.5 * torch.randn(len(held), generator=draw)
        scores.append(stream.masked_scatter(held, drawn))
    return scores[0], scores[1]


def _model_scores(windows: "LabelledWindows", model: Path) -> tuple["Tensor", "Tensor"]:
    """The scores that a fine-tuned checkpoint gives."""
    import torch

    from bertqa.answering.answerer import QuestionAnswerer
    from bertqa.data.batching import collate, token_budget_batches

    qa = QuestionAnswerer.from_pretrained(model)
    start = torch.empty(int(windows.lengths.sum()))
    end = torch.empty_like(start)
    bounds = windows.lengths.cumsum(0)
    for batch in token_budget_batches(windows.lengths, qa.runtime.tokens_per_batch):
        with torch.inference_mode(), qa.runtime.autocast():
            output = qa.model(collate(windows, batch).to(qa.runtime.device))
        where = _stream_places(bounds, windows.lengths, batch)
        start[where] = output.start_logits.float().cpu()
        end[where] = output.end_logits.float().cpu()
    return start, end


def _stream_places(bounds: "Tensor", lengths: "Tensor", chosen: "Tensor") -> "Tensor":
    """Where the tokens of the chosen windows stand in the stream of all windows."""
    import torch

    count = lengths[chosen]
    window = torch.arange(len(chosen)).repeat_interleave(count)
    first = bounds[chosen] - count
    return first[window] + torch.arange(len(window)) - (count.cumsum(0) - count)[window]


def _widened(context: str, answer: Any) -> str:
    """The answer with the rest of its first and of its last word."""
    start, end = answer.start, answer.end
    while start > 0 and not context[start - 1].isspace():
        start -= 1
    while end < len(context) and not context[end].isspace():
        end += 1
    return context[start:end]


def answers_of(texts: Sequence[str], step: int) -> dict[str, list[Any]]:
    """The answers to the questions that the peer takes as well."""
    return {"answers": list(texts[::step])}


# --- ours ----------------------------------------------------------------------------------------


class OurDecoding:
    """bertqa's own decoding, all questions.

    Args:
        folder: from ``write_job``.
        decoder: "exact" or "top20".
        step: of how many questions one is compared with the peer's.
    """

    def __init__(self, folder: str, decoder: str, step: int) -> None:
        import torch

        from bertqa.answering import evaluation
        from bertqa.data.batching import token_budget_batches
        from bertqa.data.labels import make_labelled_windows
        from bertqa.data.readers import read_examples
        from bertqa.data.tokenization import BertTokenizer
        from bertqa.model.bert import BertOutput
        from bertqa.settings import WindowSettings

        job = json.loads((Path(folder) / "job.json").read_text(encoding="utf-8"))
        scores = np.load(Path(folder) / "windows.npz")
        self.step = step
        self.settings = evaluation.DecodingSettings(N_BEST, LONGEST, decoder)
        self.examples = read_examples(Path(job["source"]))
        tokenizer = BertTokenizer.load(Path(job["model"]))
        self.windows = make_labelled_windows(self.examples, tokenizer, WindowSettings())
        start, end = torch.from_numpy(scores["start"]), torch.from_numpy(scores["end"])
        lengths = self.windows.lengths
        bounds = lengths.cumsum(0)
        # As evaluation has them: block by block, windows of like length together.
        self.blocks = []
        for block in evaluation._blocks(self.windows, len(self.examples)):
            of_block = lengths[block.windows.start : block.windows.stop]
            outputs = []
            for batch in token_budget_batches(of_block, evaluation._DECODED_TOGETHER):
                chosen = batch + block.windows.start
                where = _stream_places(bounds, lengths, chosen)
                outputs.append((chosen, BertOutput(start[where], end[where])))
            self.blocks.append((block, outputs))

    def _predictions(self) -> Iterator[Any]:
        from bertqa.answering import evaluation

        for block, outputs in self.blocks:
            results: dict[int, Any] = {}
            for output in outputs:
                results |= evaluation._decode(self.windows, [output], self.settings)
            ordered = [results[window] for window in block.windows]
            yield from evaluation._predictions(
                self.examples, self.windows, block, ordered, self.settings
            )

    def work(self) -> None:
        """All n-best lists."""
        for _ in self._predictions():
            pass

    def result(self) -> dict[str, list[Any]]:
        """The best answers, and the same widened to the words between blanks that they are of."""
        predictions = list(self._predictions())
        widened = [
            _widened(example.context, prediction.answers[0])
            for example, prediction in zip(self.examples, predictions, strict=True)
        ]
        answers = answers_of([prediction.text for prediction in predictions], self.step)
        return answers | {"widened": widened[:: self.step]}


# --- the peer ------------------------------------------------------------------------------------


class PeerDecoding:
    """compute_predictions_logits of transformers 4.57; it writes no files here.

    Args:
        folder: from ``write_job``.
        step: of how many questions one is taken.
    """

    def __init__(self, folder: str, step: int) -> None:
        from transformers import AutoTokenizer
        from transformers.data.processors.squad import SquadExample

        job = json.loads((Path(folder) / "job.json").read_text(encoding="utf-8"))
        self.tokenizer = AutoTokenizer.from_pretrained(job["model"])
        self.lower = job["lower"]
        taken = range(0, len(job["examples"]), step)
        self.examples = [
            SquadExample(name, question, context, None, None, "")
            for name, question, context in (job["examples"][number] for number in taken)
        ]
        self.features, self.results = self._windows(Path(folder), taken)

    def _windows(self, folder: Path, taken: range) -> tuple[list[Any], list[Any]]:
        """The features and results of the questions taken."""
        from transformers.data.processors.squad import (
            SquadFeatures,
            SquadResult,
            _new_check_is_max_context,
        )

        with np.load(folder / "windows.npz") as file:
            table = {name: file[name] for name in file.files}
        bounds = np.concatenate([[0], table["length"].cumsum()])
        features, results = [], []
        for index, number in enumerate(taken):
            numbers = range(*np.searchsorted(table["example"], [number, number + 1]))
            pieces = [
                {
                    "start": int(table["first"][window]),
                    "length": int(table["length"][window] - table["place"][window] - 1),
                }
                for window in numbers
            ]
            word_of = self.examples[index].char_to_word_offset
            for order, window in enumerate(numbers):
                rows = slice(bounds[window], bounds[window + 1])
                place, piece = int(table["place"][window]), pieces[order]
                inside = range(place, place + piece["length"])
                characters = table["character"][rows].tolist()
                features.append(
                    SquadFeatures(
                        [], [], [], 0, [], index, window, piece["length"],
                        token_is_max_context={
                            token: _new_check_is_max_context(
                                pieces, order, piece["start"] + token - place
                            )
                            for token in inside
                        },
                        tokens=table["tokens"][rows].tolist(),
                        token_to_orig_map={token: word_of[characters[token]] for token in inside},
                        start_position=0, end_position=0, is_impossible=False,
                    )
                )  # fmt: skip
                scores = (table[side][rows].tolist() for side in ("start", "end"))
                results.append(SquadResult(window, *scores))
        return features, results

    def _predictions(self) -> dict[str, str]:
        from transformers.data.metrics.squad_metrics import compute_predictions_logits

        found: dict[str, str] = compute_predictions_logits(
            self.examples, self.features, self.results, N_BEST, LONGEST, self.lower,
            None, None, None, False, False, 0.0, self.tokenizer,
        )  # fmt: skip
        return found

    def work(self) -> None:
        """The n-best lists of the questions taken."""
        self._predictions()

    def result(self) -> dict[str, list[Any]]:
        """The best answers."""
        found = self._predictions()
        return {"answers": [found[example.qas_id] for example in self.examples]}
