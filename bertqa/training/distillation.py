"""Knowledge distillation: train a model to match its teachers' distributions.

N  windows of a batch     T  tokens of the batch     L  tokens of its longest window
K  teachers

    p      mean over the teachers of softmax(logits / temperature)          (N, L)
    q      softmax(logits / temperature) of the model in training           (N, L)
    loss   (1 - weight) * span loss + weight * temperature^2 * KL(p || q)   (N,)

Start and end each have p and q, over the tokens of one window; the two divergences are summed, as
in the span loss. A temperature above 1 shows how the teachers rank the wrong tokens. It scales the
gradient of the divergence by about 1 / temperature^2, which the factor corrects (Hinton et al.,
"Distilling the Knowledge in a Neural Network", 2015, section 2). Hu et al., "Attention-Guided
Answer Distillation for Machine Reading Comprehension", 2018 (arXiv 1808.07644), train a reader on
an ensemble of readers in this way.

A teacher trained without "no answer" also predicts a span for an unanswerable question. If the
model in training can predict "no answer", such a teacher is used only on windows that contain an
answer; the loss of a window without a usable teacher is the span loss. A teacher's decoding.json
tells which kind it is; without the file, it counts as trained without "no answer".
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bertqa.answering.answerer import check_window_fits, load_folder
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.answering.pickling import CheckpointFiles
from bertqa.data.batching import TrainingBatch
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import UserError
from bertqa.model.bert import BertForQuestionAnswering, BertOutput
from bertqa.model.cpu_inference import prepare_for_inference
from bertqa.model.hub import find_folder
from bertqa.model.packing import pad_windows
from bertqa.runtime import Runtime
from bertqa.settings import TrainingSettings, WindowSettings

# The logit of padding: finite, since 0 * -inf would be NaN in the sum of p * log q.
_PADDING = -1e30


class Teacher(NamedTuple):
    """A teacher model.

    Attributes:
        model: the model.
        spans_only: use it only on windows with an answer, see above.
        digest: digest of its files, and of ``spans_only`` instead of decoding.json, whose other
            entries do not affect training; a resumed run must have the same.
    """

    model: BertForQuestionAnswering
    spans_only: bool = False
    digest: str = ""


class Distillation:
    """Loss with teachers.

    Args:
        teachers: teachers; they are made ready for inference in place, in the run's precision.
        settings: temperature and weight.
        runtime: device and precision of the run.
    """

    def __init__(
        self, teachers: Sequence[Teacher], settings: TrainingSettings, runtime: Runtime
    ) -> None:
        self.models = [
            prepare_for_inference(each.model, runtime.device, runtime.dtype) for each in teachers
        ]
        spans_only = [teacher.spans_only for teacher in teachers]
        self.spans_only = torch.tensor(spans_only, device=runtime.device)  # (K,)
        self.temperature = settings.distillation_temperature
        self.weight, self.runtime = settings.distillation_weight, runtime

    def __call__(self, batch: TrainingBatch, output: BertOutput, losses: Tensor) -> Tensor:
        """Return the loss of each window, ``(N,)``.

        Args:
            batch: N windows.
            output: start and end logits of the model in training, each ``(T,)``.
            losses: its span losses, ``(N,)``.
        """
        with torch.inference_mode(), self.runtime.autocast():
            targets = [model(batch.tokens) for model in self.models]
        has_answer = batch.start_positions > 0  # (N,); [CLS] is the label of "no answer"
        used = has_answer | ~self.spans_only[:, None]  # (K, N)
        start, end = (
            self._divergence(logits, targets_of, batch.tokens.lengths, used)
            for logits, *targets_of in zip(output, *targets, strict=True)
        )
        soft_losses = self.temperature**2 * (start + end)
        weight = self.weight * used.any(dim=0)  # (N,)
        return (1 - weight) * losses + weight * soft_losses

    def _divergence(
        self, logits: Tensor, targets: Sequence[Tensor], lengths: Sequence[int], used: Tensor
    ) -> Tensor:
        """Return KL(p || q) of each window, ``(N,)``; logits ``(T,)``, ``used`` ``(K, N)``."""
        log_q = self._pad(logits, lengths).log_softmax(dim=1)  # (N, L)
        p = torch.stack([self._pad(each, lengths).softmax(dim=1) for each in targets])
        weights = used / used.sum(dim=0).clamp(min=1)  # (K, N); over the teachers they sum to 1
        p = (p * weights[:, :, None]).sum(dim=0)  # (N, L); 0 for windows without a usable teacher
        return F.kl_div(log_q, p, reduction="none").sum(dim=1)

    def _pad(self, logits: Tensor, lengths: Sequence[int]) -> Tensor:
        """Divide logits ``(T,)`` by the temperature and pad them to ``(N, L)``."""
        return pad_windows(logits / self.temperature, lengths, _PADDING)


def load_teachers(
    names: Sequence[str],
    settings: TrainingSettings,
    tokenizer: BertTokenizer,
    windows: WindowSettings,
    version_2_with_negative: bool,
    *,
    allow_bin: bool = False,
) -> list[Teacher]:
    """Load the teachers of a model.

    Args:
        names: names as for ``--model``.
        settings, tokenizer, windows: those of the model in training.
        version_2_with_negative: whether the model in training can predict "no answer".
        allow_bin: see ``load_checkpoint``.

    Raises:
        UserError: a teacher is not available, not fine-tuned, has another tokenizer or too few
            position embeddings; or distillation settings are given without teachers.
    """
    for name in ("distillation_temperature", "distillation_weight"):
        value = getattr(settings, name)
        if not names and value != getattr(TrainingSettings, name):
            raise UserError(f"--{name} {value} requires --teacher: pass both or neither")
    return [
        _load_teacher(name, tokenizer, windows, version_2_with_negative, allow_bin)
        for name in names
    ]


def _load_teacher(
    name: str,
    tokenizer: BertTokenizer,
    windows: WindowSettings,
    version_2_with_negative: bool,
    allow_bin: bool,
) -> Teacher:
    try:
        folder = find_folder(name, allow_bin=allow_bin)
        model, own, _ = load_folder(folder, allow_bin, require_head=True)
        _, decoding = read_decoding_file(folder)
    except UserError as error:
        raise UserError(f"--teacher: {str(error).removeprefix('model: ')}") from error
    if not own.is_equivalent_to(tokenizer):
        raise UserError(
            f"--teacher {name}: must have the tokenizer of --model, got another vocabulary or "
            f"other rules ({own.source}): use a teacher with the same tokenizer"
        )
    check_window_fits(model.config, windows, model=f"--teacher {name}")
    spans_only = version_2_with_negative and not decoding.version_2_with_negative
    digest = CheckpointFiles(folder).digest(decoding=False) + " spans_only" * spans_only
    return Teacher(model, spans_only, digest)
