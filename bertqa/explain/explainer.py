"""Computation of an explanation, which the page of ``bertqa explain`` shows.

The answer is the one that ``bertqa infer`` gives; its scores are those of float32, if float32 gives
the same answer. The rest (logits by layer, attention, effects of heads and layers, token
attributions) is computed in float32 for the window that contains the answer; of other windows only
the best span is kept.

L  tokens of the window      H  attention heads
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from bertqa.answering.answerer import (
    NO_OVERRIDES,
    QuestionAnswerer,
    check_window_fits,
    default_window_settings,
    make_examples,
)
from bertqa.answering.answers import Prediction, answer_entries
from bertqa.answering.evaluation import predict
from bertqa.data.batching import collate
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import WindowSet, make_windows
from bertqa.errors import UserError
from bertqa.explain.attribution import (
    Progress,
    head_effects,
    integrated_gradients,
    layer_effects,
    masked_baseline,
)
from bertqa.explain.explanation import Candidate, Explanation, Inside
from bertqa.explain.hooks import attention_names, hidden_state_names, logit_lens, record
from bertqa.explain.scored_text import ScoredText
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import load_checkpoint
from bertqa.model.cpu_inference import is_prepacked
from bertqa.model.hub import commit_of
from bertqa.model.packing import PackedBatch
from bertqa.runtime import Runtime
from bertqa.settings import DecodingSettings, Overrides, WindowSettings

STEPS = 64  # of integrated gradients


def explain(
    model: BertForQuestionAnswering,
    tokenizer: BertTokenizer,
    question: str,
    context: str,
    *,
    windows: WindowSettings | None = None,
    decoding: DecodingSettings | None = None,
    prediction: Prediction | None = None,
    model_name: str = "",
    answered_in: str = "fp32",
    steps: int = STEPS,
    progress: Progress | None = None,
) -> Explanation:
    """Answer a question and explain the answer.

    Args:
        model: a model in float32 that is not prepacked, such as ``load_checkpoint(folder)[0]``.
        windows, decoding: sliding-window and decoding settings; None uses the defaults of
            ``QuestionAnswerer``.
        prediction: the answer, if the same model found it already with these settings in the
            precision ``answered_in``.
        steps: steps of integrated gradients; more are more accurate.
        progress: called with the number of ``passes`` just completed.

    Raises:
        UserError: an empty question or context, a question or windows that are too long, or a
            prepacked model, which has no gradients.
    """
    if is_prepacked(model) or next(model.parameters()).dtype is not torch.float32:
        raise UserError(
            "model: must be in float32 and not prepacked, got one prepared for inference: "
            "load it with bertqa.model.checkpoint.load_checkpoint"
        )
    examples = make_examples(question, context)
    windows = windows or default_window_settings(model.config)
    decoding = replace(decoding or DecodingSettings(), score_threshold=0.0)
    check_window_fits(model.config, windows)
    model.eval()
    cut = make_windows(examples, tokenizer, windows)
    answered = prediction
    if prediction is None or answered_in != "fp32":
        runtime = Runtime(next(model.parameters()).device)
        (in_fp32,) = predict(model, examples, cut, decoding, runtime)
        # All numbers are in one precision, unless the precision changes the answer.
        if prediction is None or _same_answer(in_fp32, prediction):
            prediction = in_fp32
    text = ScoredText(context, cut, decoding, *_scores(model, cut))
    candidates = tuple(map(text.find, prediction.answers))
    chosen = next(i for i, c in enumerate(candidates) if c.answer.text == prediction.text)
    answer = candidates[chosen]
    batch = _batch(model, cut, answer.window)
    layer_logits, attentions = _read_layers(model, batch)
    return Explanation(
        question=question,
        context=context,
        model_name=model_name,
        answered=answered or prediction,
        answered_in=answered_in,
        decoding=decoding,
        prediction=prediction,
        candidates=candidates,
        chosen=chosen,
        best_spans=tuple(text.best_of_windows()),
        null_scores=tuple(text.null_scores),
        tokens=tuple(tokenizer.tokens(text.windows[answer.window].input_ids)),
        offsets=tuple(text.windows[answer.window].offsets),
        layer_logits=layer_logits,
        layers=tuple(text.readings(answer, layer_logits)),
        inside=_inside(model, tokenizer, batch, answer, attentions, steps, progress),
    )


def _same_answer(a: Prediction, b: Prediction) -> bool:
    """Return whether two predictions answer with the same characters of the context."""
    (first,), (second,) = answer_entries(a, top_k=1), answer_entries(b, top_k=1)
    return (first["start"], first["end"]) == (second["start"], second["end"])


@torch.no_grad()
def _read_layers(model: BertForQuestionAnswering, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Return the logits of S and E after the embeddings and each layer, and all attention.

    Returns:
        ``(layers + 1, 2, L)`` and ``(layers, H, L, L)``, on the CPU.
    """
    states, attentions = hidden_state_names(model), attention_names(model)
    with record(model, [*states, *attentions]) as seen:
        model(batch)
    lens = [torch.stack(pair) for pair in logit_lens(model, [seen[name] for name in states])]
    return torch.stack(lens).cpu(), torch.stack([seen[name][0] for name in attentions]).cpu()


def _inside(
    model: BertForQuestionAnswering,
    tokenizer: BertTokenizer,
    batch: PackedBatch,
    answer: Candidate,
    attentions: Tensor,
    steps: int,
    progress: Progress | None,
) -> Inside:
    """Compute the effects of heads, layers and tokens on the answer."""
    first, last = answer.first, answer.last
    baseline = masked_baseline(batch, tokenizer.mask_id, (tokenizer.cls_id, tokenizer.sep_id))
    parts = partial(integrated_gradients, model, batch, baseline, steps=steps, progress=progress)
    return Inside(
        attentions=attentions,
        head_effects=head_effects(model, batch, first, last, progress),
        layer_effects=layer_effects(model, batch, first, last, progress),
        start_attribution=parts(first),
        end_attribution=parts(last, of_end=True),
        replacement=tokenizer.tokens([tokenizer.mask_id])[0],
        steps=steps,
    )


def explain_checkpoint(
    name: str,
    question: str,
    context: str,
    *,
    top_k: int = 1,
    overrides: Overrides = NO_OVERRIDES,
    device: str = "auto",
    precision: str = "auto",
    revision: str | None = None,
    allow_bin: bool = False,
) -> Explanation:
    """Answer as ``bertqa infer`` does, in any precision, and explain the answer in float32.

    Args:
        name: checkpoint folder or name.
        top_k: minimum number of answers to keep.

    Raises:
        UserError: the checkpoint or the question is invalid.
    """
    qa = QuestionAnswerer.from_pretrained(
        name, overrides=overrides, device=device, precision=precision, revision=revision,
        allow_bin=allow_bin,
    )  # fmt: skip
    n_best = max(top_k, qa.decoding.n_best_size)
    qa.decoding = replace(qa.decoding, n_best_size=n_best, score_threshold=0.0)
    (prediction,) = qa.answer(make_examples(question, context))
    windows, decoding, tokenizer, runtime = qa.windows, qa.decoding, qa.tokenizer, qa.runtime
    folder = qa.folder
    del qa  # free the prepacked model, which has no gradients, before loading another
    assert folder is not None  # from_pretrained sets it
    model = load_checkpoint(folder, allow_bin=allow_bin)[0].to(runtime.device)
    with tqdm(total=passes(model), unit="pass", disable=None, desc="explaining") as bar:
        return explain(
            model, tokenizer, question, context, windows=windows, decoding=decoding,
            prediction=prediction, model_name=name if commit_of(folder) else folder.resolve().name,
            answered_in=runtime.precision, progress=bar.update,
        )  # fmt: skip


def passes(model: BertForQuestionAnswering, steps: int = STEPS) -> int:
    """Return the total number of forward passes that ``progress`` reports."""
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    return layers * heads + layers + 2 * steps


def _batch(model: BertForQuestionAnswering, windows: WindowSet, number: int) -> PackedBatch:
    """Return one window on the model's device."""
    return collate(windows, torch.tensor([number])).to(next(model.parameters()).device)


@torch.no_grad()
def _scores(
    model: BertForQuestionAnswering, windows: WindowSet
) -> tuple[list[Tensor], list[Tensor]]:
    """Return S.T_i and E.T_i of every window, on the CPU."""
    outputs = [model(_batch(model, windows, number)) for number in range(len(windows))]
    starts, ends = zip(*((start.cpu(), end.cpu()) for start, end in outputs), strict=True)
    return list(starts), list(ends)
