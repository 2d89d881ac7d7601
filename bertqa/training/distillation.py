"""Knowledge distillation: the model in training learns the distributions of its teachers.

N  windows of a batch     T  tokens of the batch     L  tokens of its longest window
K  teachers

    p      mean over the teachers of softmax(scores / temperature)          (N, L)
    q      softmax(scores / temperature) of the model in training           (N, L)
    loss   (1 - weight) * span loss + weight * temperature^2 * KL(p || q)   (N,)

Start and end each have a p and a q, over the tokens of one window; their two divergences are summed
as the span loss sums the two. A temperature above 1 shows how the teachers rank the wrong tokens.
It scales the gradient of the divergence by about 1 / temperature^2, which the factor makes up for
(Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2). Hu et al.,
"Attention-Guided Answer Distillation for Machine Reading Comprehension", 2018 (arXiv 1808.07644),
train one reader on an ensemble of readers with it.

A teacher that was trained to answer every question names a span of an unanswerable one too. Where
the model in training is to say "no answer", such a teacher is heard on the windows that hold an
answer alone; a window on which nobody is heard has the span loss as its loss.
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
from bertqa.model.cpu_inference import make_ready
from bertqa.model.hub import find_folder
from bertqa.model.packing import pad_windows
from bertqa.runtime import Runtime
from bertqa.settings import TrainingSettings, WindowSettings

# The score of padding: finite, since 0 * -inf would be NaN in the sum of p * log q.
_NEVER = -1e30


class Teacher(NamedTuple):
    """A model to learn from.

    Attributes:
        spans_only: it knows no "no answer", and the model in training is to know one.
        digest: of its files but decoding.json, which does not change its scores; a run that is
            resumed must have the same.
    """

    model: BertForQuestionAnswering
    spans_only: bool = False
    digest: str = ""


class Distillation:
    """The loss of a model with teachers.

    Args:
        teachers: they are made ready to answer in place, in the precision of the run.
        settings: temperature and weight.
        runtime: where the run computes.
    """

    def __init__(
        self, teachers: Sequence[Teacher], settings: TrainingSettings, runtime: Runtime
    ) -> None:
        self.models = [make_ready(each.model, runtime.device, runtime.dtype) for each in teachers]
        spans_only = [teacher.spans_only for teacher in teachers]
        self.spans_only = torch.tensor(spans_only, device=runtime.device)  # (K,)
        self.temperature = settings.distillation_temperature
        self.weight, self.runtime = settings.distillation_weight, runtime

    def __call__(self, batch: TrainingBatch, output: BertOutput, losses: Tensor) -> Tensor:
        """Return the loss of each window, ``(N,)``.

        Args:
            batch: N windows.
            output: the scores of the model in training, ``(T,)`` of start and of end.
            losses: its span losses, ``(N,)``.
        """
        with torch.inference_mode(), self.runtime.autocast():
            targets = [model(batch.tokens) for model in self.models]
        has_answer = batch.start_positions > 0  # (N,); [CLS] is the label of a window without one
        heard = has_answer | ~self.spans_only[:, None]  # (K, N)
        start, end = (
            self._divergence(scores, theirs, batch.tokens.lengths, heard)
            for scores, *theirs in zip(output, *targets, strict=True)
        )
        soft_losses = self.temperature**2 * (start + end)
        weight = self.weight * heard.any(dim=0)  # (N,)
        return (1 - weight) * losses + weight * soft_losses

    def _divergence(
        self, scores: Tensor, theirs: Sequence[Tensor], lengths: Sequence[int], heard: Tensor
    ) -> Tensor:
        """KL(p || q) of each window: scores ``(T,)``, K teachers heard ``(K, N)``, to ``(N,)``."""
        log_q = self._padded(scores, lengths).log_softmax(dim=1)  # (N, L)
        p = torch.stack([self._padded(each, lengths).softmax(dim=1) for each in theirs])
        shares = heard / heard.sum(dim=0).clamp(min=1)  # (K, N); of one window they add up to 1
        p = (p * shares[:, :, None]).sum(dim=0)  # (N, L); 0 where nobody is heard
        return F.kl_div(log_q, p, reduction="none").sum(dim=1)

    def _padded(self, scores: Tensor, lengths: Sequence[int]) -> Tensor:
        """Scores over the temperature: ``(T,)`` to ``(N, L)``."""
        return pad_windows(scores / self.temperature, lengths, _NEVER)


def load_teachers(
    names: Sequence[str],
    settings: TrainingSettings,
    tokenizer: BertTokenizer,
    windows: WindowSettings,
    version_2_with_negative: bool,
    *,
    allow_bin: bool = False,
) -> list[Teacher]:
    """Load the models that another one with this tokenizer is to learn from.

    Args:
        names: as of ``--model``.
        settings, tokenizer, windows: of the model in training.
        version_2_with_negative: that one is to say "no answer".
        allow_bin: see ``load_checkpoint``.

    Raises:
        UserError: one is not available, was not fine-tuned, has another tokenizer or too few
            positions; or the settings are of no use without teachers.
    """
    for name in ("distillation_temperature", "distillation_weight"):
        value = getattr(settings, name)
        if not names and value != getattr(TrainingSettings, name):
            raise UserError(f"--{name} {value} needs --teacher beside it: pass both or neither")
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
    if not own.gives_the_ids_of(tokenizer):
        raise UserError(
            f"--teacher {name}: must have the tokenizer of --model, got another vocabulary or "
            f"other rules ({own.source}): take a teacher that was trained with the same"
        )
    check_window_fits(model.config, windows, model=f"--teacher {name}")
    spans_only = version_2_with_negative and not decoding.version_2_with_negative
    return Teacher(model, spans_only, CheckpointFiles(folder).digest(decoding=False))
