"""Forward passes to be timed, ours and the peers', over windows that all of them share.

N  windows of a batch     S  tokens of its longest window, or 384

Batches are made beforehand, so what is timed is the model alone. A contender may have several
ways to cut the windows into batches; the round that is not counted takes the fastest.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.models import DTYPES, LONGEST, device, fastest, synchronize, windows_of
from bertqa.answering.answerer import QuestionAnswerer
from bertqa.data.batching import collate, token_budget_batches
from bertqa.data.labels import LabelledWindows

NAMES = ("input_ids", "attention_mask", "token_type_ids")

# The indices of the windows of each batch of one way to cut them.
Cut = list[Tensor]
# All batches of a cut, as the model takes them -> for each batch the start and the end scores:
# ``(T,)`` of a stream, ``(N, S)`` of a rectangle.
Forward = Callable[[Sequence[Any]], list[tuple[Any, Any]]]


class ForwardTask:
    """All windows through a model, in the fastest of several cuts.

    Args:
        forward: what is timed.
        batch_of: makes of the indices of windows what ``forward`` takes.
        cuts: the ways to cut the windows into batches.
        lengths: tokens of each window.
    """

    def __init__(
        self, forward: Forward, batch_of: Callable[[Tensor], Any], cuts: Sequence[Cut],
        lengths: Tensor,
    ) -> None:  # fmt: skip
        self.forward, self.cuts, self.lengths = forward, cuts, lengths
        self.batches = [[batch_of(chosen) for chosen in cut] for cut in cuts]
        self.best: int | None = None

    def work(self) -> None:
        """The forward passes; the first time also the choice of the cut."""
        if self.best is None:
            self.best = fastest([partial(self._run, batches) for batches in self.batches])
        self._run(self.batches[self.best])

    @torch.inference_mode()
    def _run(self, batches: Sequence[Any]) -> list[tuple[Any, Any]]:
        outputs = self.forward(batches)
        synchronize()
        return outputs

    def result(self) -> dict[str, list[float]]:
        """The scores of all real tokens, in the order of the windows, of the last cut.

        That is one with several windows to a batch, if there is any: what padding could spoil.
        """
        found: dict[int, tuple[list[float], ...]] = {}  # of each window, without padding
        for chosen, output in zip(self.cuts[-1], self._run(self.batches[-1]), strict=True):
            lengths = self.lengths[chosen].tolist()
            rows = zip(*(_windows(scores, lengths) for scores in output), strict=True)
            found.update(zip(chosen.tolist(), rows, strict=True))
        start, end = zip(*(found[window] for window in range(len(found))), strict=True)
        return {"start": list(chain(*start)), "end": list(chain(*end))}


def _windows(scores: Any, lengths: Sequence[int]) -> list[list[float]]:
    """The scores of each window without padding, of a stream or of a rectangle."""
    scores = torch.as_tensor(scores).float().cpu()
    rows = scores.split(list(lengths)) if scores.dim() == 1 else scores
    return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]


# --- cuts and batches ----------------------------------------------------------------------------


def in_order(lengths: Tensor, batch_size: int) -> Cut:
    """The windows as they come."""
    return list(torch.arange(len(lengths)).split(batch_size))


def by_length(lengths: Tensor, batch_size: int) -> Cut:
    """Windows of like length together, longest first."""
    return list(lengths.argsort(descending=True, stable=True).split(batch_size))


def padded(windows: LabelledWindows, chosen: Tensor, width: int = 0) -> dict[str, Tensor]:
    """The chosen windows as a rectangle ``(N, S)`` of at least ``width`` tokens, with its mask."""
    stream = collate(windows, chosen)
    columns = (stream.input_ids, torch.ones_like(stream.input_ids), stream.token_type_ids)
    lengths = list(stream.lengths)
    size = max(width, *lengths)

    def rectangle(values: Tensor) -> Tensor:
        rows = pad_sequence(list(values.split(lengths)), batch_first=True)
        return torch.nn.functional.pad(rows, (0, size - rows.shape[1]))

    return {name: rectangle(c) for name, c in zip(NAMES, columns, strict=True)}


def batch_sizes() -> tuple[int, ...]:
    """Windows of a padded batch that are tried."""
    return (32, 64, 128) if torch.cuda.is_available() else (4, 8, 16)


# --- ours ----------------------------------------------------------------------------------------


def bertqa(model: str, source: dict[str, Any], precision: str, one: bool) -> ForwardTask:
    """bertqa, as QuestionAnswerer sets it up; the batches are those that it makes."""
    qa = QuestionAnswerer.from_pretrained(model, precision=precision)
    windows = windows_of(model, **source)
    lengths = windows.lengths
    budget = 1 if one else qa.runtime.tokens_per_batch

    @torch.inference_mode()
    def run(batch: Any) -> tuple[Tensor, Tensor]:
        with qa.runtime.autocast():
            output = qa.model(batch)
        return output.start_logits, output.end_logits

    def forward(batches: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
        # With --one a question comes when the one before is answered.
        each = map if one else qa.runtime.map_batches
        return list(each(run, batches))

    return ForwardTask(
        forward,
        lambda chosen: collate(windows, chosen).to(qa.runtime.device),
        [list(token_budget_batches(lengths, budget))],
        lengths,
    )


# --- peers ---------------------------------------------------------------------------------------


def load_transformers(model: str, attention: str, precision: str) -> Any:
    """transformers' model on the device, its weights in the precision."""
    from transformers import BertForQuestionAnswering

    loaded: Any = BertForQuestionAnswering.from_pretrained(
        model, attn_implementation=attention, dtype=DTYPES[precision]
    )
    return loaded.to(device()).eval()


def compiled(model: Any) -> Any:
    """The model through torch.compile, for any shape of batch.

    Raises:
        RuntimeError: on the CPU it needs a C++ compiler, and there is none.
    """
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    if not torch.cuda.is_available() and not any(map(shutil.which, compilers)):
        raise RuntimeError("left out: torch.compile finds no C++ compiler")
    return torch.compile(model, dynamic=True)


def transformers(
    model: str, source: dict[str, Any], attention: str, precision: str, way: str, compile: bool
) -> ForwardTask:
    """transformers 5; ``way`` is "padded" (to 384), "sorted" (to the longest), or "one"."""
    loaded = load_transformers(model, attention, precision)
    if compile:
        loaded = compiled(loaded)
    windows = windows_of(model, **source)
    lengths = windows.lengths

    def batch_of(chosen: Tensor) -> dict[str, Tensor]:
        rectangle = padded(windows, chosen, LONGEST if way == "padded" else 0)
        return {name: values.to(device()) for name, values in rectangle.items()}

    def forward(inputs: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
        outputs = [loaded(**batch) for batch in inputs]
        return [(output.start_logits, output.end_logits) for output in outputs]

    cut = by_length if way == "sorted" else in_order
    sizes = (1,) if way == "one" else batch_sizes()
    return ForwardTask(forward, batch_of, [cut(lengths, size) for size in sizes], lengths)


def _outside_torch(forward: Forward, model: str, source: dict[str, Any], one: bool) -> ForwardTask:
    """The task of an exported model: each window alone at its own length, or sorted in batches."""
    windows = windows_of(model, **source)
    cuts = [by_length(windows.lengths, size) for size in (1, *batch_sizes())]
    return ForwardTask(
        forward,
        lambda chosen: {name: x.numpy() for name, x in padded(windows, chosen).items()},
        cuts[:1] if one else cuts,
        windows.lengths,
    )


def onnxruntime(model: str, source: dict[str, Any], precision: str, one: bool) -> ForwardTask:
    """onnxruntime on the exported model; int8 is its dynamic quantisation."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Contenders take turns: threads that went on waiting in a loop would disturb the others.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    path = str(onnx_file(Path(model), precision))
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(batches: Sequence[Any]) -> list[tuple[Any, Any]]:
        return [tuple(session.run(None, batch)) for batch in batches]

    return _outside_torch(forward, model, source, one)


def openvino(model: str, source: dict[str, Any], precision: str, one: bool) -> ForwardTask:
    """OpenVINO on the exported model, with as many requests at once as it finds best."""
    import openvino as runtime

    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY" if one else "THROUGHPUT",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    exported = runtime.compile_model(str(onnx_file(Path(model), "plain")), "CPU", settings)
    queue = runtime.AsyncInferQueue(exported)
    outputs: dict[int, tuple[Any, Any]] = {}

    def keep(request: Any, number: int) -> None:
        start, end = (request.get_output_tensor(place).data for place in (0, 1))
        outputs[number] = (start.copy(), end.copy())

    def forward(batches: Sequence[Any]) -> list[tuple[Any, Any]]:
        for number, batch in enumerate(batches):
            queue.start_async(batch, number)
            if one:  # the next question comes when this one is answered
                queue.wait_all()
        queue.wait_all()
        return [outputs[number] for number in range(len(batches))]

    queue.set_callback(keep)
    return _outside_torch(forward, model, source, one)


# --- ONNX ----------------------------------------------------------------------------------------


def onnx_file(model: Path, precision: str) -> Path:
    """The model in ONNX, beside its checkpoint, made if it is not there.

    ``precision`` is "plain" (as exported), "fp32" (fused by onnxruntime's optimiser for BERT) or
    "int8" (that, quantised).
    """
    path = model / f"{precision}.onnx"
    if path.exists():
        return path
    if precision == "plain":
        _export(model, path)
    elif precision == "fp32":
        from onnxruntime.transformers import optimizer

        from bertqa.model.config import load_config

        config, _ = load_config(model)
        optimized = optimizer.optimize_model(
            str(onnx_file(model, "plain")), "bert", config.num_attention_heads, config.hidden_size
        )
        optimized.save_model_to_file(str(path), use_external_data_format=True)
    else:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            str(onnx_file(model, "fp32")), str(path), per_channel=True, reduce_range=False,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
    return path


class _Scores(torch.nn.Module):
    """transformers' model with its inputs in order and its scores as a pair."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``(N, S)`` each."""
        output = self.model(input_ids, attention_mask, token_type_ids)
        return output.start_logits, output.end_logits


def _export(model: Path, path: Path) -> None:
    """transformers' model to ONNX, for any number of windows and tokens."""
    loaded = load_transformers(str(model), "eager", "fp32").cpu()
    ids = torch.ones(2, 16, dtype=torch.int64)  # of any shape that is neither 0 nor 1
    mask = (torch.arange(16) < torch.tensor([[16], [9]])).long()  # the mask must stay in the graph
    names = (
        torch.export.Dim("windows", min=1, max=4096),
        torch.export.Dim("tokens", min=2, max=512),
    )
    torch.onnx.export(
        _Scores(loaded), (ids, mask, torch.zeros_like(ids)), str(path), input_names=list(NAMES),
        output_names=["start", "end"], dynamic_shapes=(dict(enumerate(names)),) * 3, dynamo=True,
        external_data=True,
    )  # fmt: skip
