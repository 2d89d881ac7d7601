"""Forward passes of bertqa and its peers over the same windows.

N  windows in a batch     S  tokens of its longest window, or 384

Batches are made in advance, so only the model is timed. A contender may have several batchings; the
warmup round selects the fastest.
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

# The window indices of each batch.
Cut = list[Tensor]
# All batches as inputs of the model -> start and end logits of each batch: ``(T,)`` if packed,
# ``(N, S)`` if padded.
Forward = Callable[[Sequence[Any]], list[tuple[Any, Any]]]


class ForwardTask:
    """A forward pass over all windows, with the fastest of several batchings.

    Args:
        forward: the timed function.
        batch_of: makes an input of ``forward`` from window indices.
        cuts: the batchings to choose from.
        lengths: number of tokens of each window.
    """

    def __init__(
        self, forward: Forward, batch_of: Callable[[Tensor], Any], cuts: Sequence[Cut],
        lengths: Tensor,
    ) -> None:  # fmt: skip
        self.forward, self.cuts, self.lengths = forward, cuts, lengths
        self.batches = [[batch_of(chosen) for chosen in cut] for cut in cuts]
        self.best: int | None = None

    def work(self) -> None:
        """Run all batches; the first call also selects the batching."""
        if self.best is None:
            self.best = fastest([partial(self._run, batches) for batches in self.batches])
        self._run(self.batches[self.best])

    @torch.inference_mode()
    def _run(self, batches: Sequence[Any]) -> list[tuple[Any, Any]]:
        outputs = self.forward(batches)
        synchronize()
        return outputs

    def result(self) -> dict[str, list[float]]:
        """Return the logits of all tokens without padding, in the order of the windows.

        They are computed with the last batching, which has several windows per batch if any does,
        so that errors from padding are detected.
        """
        found: dict[int, tuple[list[float], ...]] = {}  # window -> logits without padding
        for chosen, output in zip(self.cuts[-1], self._run(self.batches[-1]), strict=True):
            lengths = self.lengths[chosen].tolist()
            rows = zip(*(_windows(scores, lengths) for scores in output), strict=True)
            found.update(zip(chosen.tolist(), rows, strict=True))
        start, end = zip(*(found[window] for window in range(len(found))), strict=True)
        return {"start": list(chain(*start)), "end": list(chain(*end))}


def _windows(scores: Any, lengths: Sequence[int]) -> list[list[float]]:
    """Split packed or padded logits into windows without padding."""
    scores = torch.as_tensor(scores).float().cpu()
    rows = scores.split(list(lengths)) if scores.dim() == 1 else scores
    return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]


# --- batching ------------------------------------------------------------------------------------


def in_order(lengths: Tensor, batch_size: int) -> Cut:
    """Batch the windows in order."""
    return list(torch.arange(len(lengths)).split(batch_size))


def by_length(lengths: Tensor, batch_size: int) -> Cut:
    """Batch windows of similar length, longest first."""
    return list(lengths.argsort(descending=True, stable=True).split(batch_size))


def padded(windows: LabelledWindows, chosen: Tensor, width: int = 0) -> dict[str, Tensor]:
    """Pad windows to ``(N, S)`` with S at least ``width``; return ids, attention mask and types."""
    packed = collate(windows, chosen)
    columns = (packed.input_ids, torch.ones_like(packed.input_ids), packed.token_type_ids)
    lengths = list(packed.lengths)
    size = max(width, *lengths)

    def pad(values: Tensor) -> Tensor:
        rows = pad_sequence(list(values.split(lengths)), batch_first=True)
        return torch.nn.functional.pad(rows, (0, size - rows.shape[1]))

    return {name: pad(c) for name, c in zip(NAMES, columns, strict=True)}


def batch_sizes() -> tuple[int, ...]:
    """Return the batch sizes to try with padding."""
    return (32, 64, 128) if torch.cuda.is_available() else (4, 8, 16)


# --- bertqa --------------------------------------------------------------------------------------


def bertqa(model: str, source: dict[str, Any], precision: str, one: bool) -> ForwardTask:
    """Prepare bertqa with the model and the batches of QuestionAnswerer."""
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
        # With --one the calls are sequential.
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
    """Load the transformers model on the device, with weights in the precision."""
    from transformers import BertForQuestionAnswering

    loaded: Any = BertForQuestionAnswering.from_pretrained(
        model, attn_implementation=attention, dtype=DTYPES[precision]
    )
    return loaded.to(device()).eval()


def compiled(model: Any) -> Any:
    """Compile the model with torch.compile for dynamic shapes.

    Raises:
        RuntimeError: on a CPU without a C++ compiler.
    """
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    if not torch.cuda.is_available() and not any(map(shutil.which, compilers)):
        raise RuntimeError("skipped: torch.compile requires a C++ compiler")
    return torch.compile(model, dynamic=True)


def transformers(
    model: str, source: dict[str, Any], attention: str, precision: str, way: str, compile: bool
) -> ForwardTask:
    """Prepare transformers 5; ``way`` is "padded" (to 384), "sorted" (to the longest), or "one"."""
    loaded = load_transformers(model, attention, precision)
    if compile:
        loaded = compiled(loaded)
    windows = windows_of(model, **source)
    lengths = windows.lengths

    def batch_of(chosen: Tensor) -> dict[str, Tensor]:
        inputs = padded(windows, chosen, LONGEST if way == "padded" else 0)
        return {name: values.to(device()) for name, values in inputs.items()}

    def forward(inputs: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
        outputs = [loaded(**batch) for batch in inputs]
        return [(output.start_logits, output.end_logits) for output in outputs]

    cut = by_length if way == "sorted" else in_order
    sizes = (1,) if way == "one" else batch_sizes()
    return ForwardTask(forward, batch_of, [cut(lengths, size) for size in sizes], lengths)


def _outside_torch(forward: Forward, model: str, source: dict[str, Any], one: bool) -> ForwardTask:
    """Return the task of an exported model: single windows without padding, or sorted batches."""
    windows = windows_of(model, **source)
    cuts = [by_length(windows.lengths, size) for size in (1, *batch_sizes())]
    return ForwardTask(
        forward,
        lambda chosen: {name: x.numpy() for name, x in padded(windows, chosen).items()},
        cuts[:1] if one else cuts,
        windows.lengths,
    )


def onnxruntime(model: str, source: dict[str, Any], precision: str, one: bool) -> ForwardTask:
    """Prepare onnxruntime with the exported model; int8 is its dynamic quantization."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin between rounds would slow down the other contenders.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    path = str(onnx_file(Path(model), precision))
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(batches: Sequence[Any]) -> list[tuple[Any, Any]]:
        return [tuple(session.run(None, batch)) for batch in batches]

    return _outside_torch(forward, model, source, one)


def openvino(model: str, source: dict[str, Any], precision: str, one: bool) -> ForwardTask:
    """Prepare OpenVINO with the exported model and its preferred number of parallel requests."""
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
        start, end = (request.get_output_tensor(index).data for index in (0, 1))
        outputs[number] = (start.copy(), end.copy())

    def forward(batches: Sequence[Any]) -> list[tuple[Any, Any]]:
        for number, batch in enumerate(batches):
            queue.start_async(batch, number)
            if one:  # sequential calls
                queue.wait_all()
        queue.wait_all()
        return [outputs[number] for number in range(len(batches))]

    queue.set_callback(keep)
    return _outside_torch(forward, model, source, one)


# --- ONNX ----------------------------------------------------------------------------------------


def onnx_file(model: Path, precision: str) -> Path:
    """Return the ONNX file of a checkpoint, exported into its folder if missing.

    Args:
        precision: "plain" (as exported), "fp32" (fused by onnxruntime's optimizer for BERT) or
            "int8" (fused and quantized).
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
    """The transformers model with positional inputs and a pair of logits as output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return start and end logits, ``(N, S)`` each."""
        output = self.model(input_ids, attention_mask, token_type_ids)
        return output.start_logits, output.end_logits


def _export(model: Path, path: Path) -> None:
    """Export the transformers model to ONNX with dynamic numbers of windows and tokens."""
    loaded = load_transformers(str(model), "eager", "fp32").cpu()
    ids = torch.ones(2, 16, dtype=torch.int64)  # sizes 0 and 1 would be specialized
    mask = (torch.arange(16) < torch.tensor([[16], [9]])).long()  # keeps the mask in the graph
    names = (
        torch.export.Dim("windows", min=1, max=4096),
        torch.export.Dim("tokens", min=2, max=512),
    )
    torch.onnx.export(
        _Scores(loaded), (ids, mask, torch.zeros_like(ids)), str(path), input_names=list(NAMES),
        output_names=["start", "end"], dynamic_shapes=(dict(enumerate(names)),) * 3, dynamo=True,
        external_data=True,
    )  # fmt: skip
