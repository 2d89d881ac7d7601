"""Comparison with transformers on one checkpoint: the implementation of ``bertqa verify``.

Each side loads the folder with its own code. transformers (float32, attn_implementation="eager")
runs one window at a time; bertqa runs packed batches, with each implementation of attention.

L  tokens of a window      H  attention heads
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bertqa.answering.answerer import QuestionAnswerer, check_window_fits, default_window_settings
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.data.batching import collate, token_budget_batches
from bertqa.data.graphemes import snap_to_graphemes
from bertqa.data.readers import read_examples
from bertqa.data.squad import Example, check_examples
from bertqa.data.windows import WindowSet, make_windows
from bertqa.errors import UserError, counted, reason
from bertqa.explain.comparison import Comparison, Row, largest
from bertqa.explain.hooks import attention_names, hidden_state_names, record
from bertqa.model.bert import BertForQuestionAnswering, Implementation, window_losses
from bertqa.model.hub import find_folder
from bertqa.model.names import checkpoint_name
from bertqa.model.packing import PackedBatch
from bertqa.runtime import limit_onednn_cache, local_runtime
from bertqa.settings import DecodingSettings, Overrides, WindowSettings
from bertqa.training.checkpoints import load_for_training

IMPLEMENTATIONS: tuple[Implementation, ...] = ("reference", "fused")  # of our attention
# Quantity -> its limit as a multiple of the bound; 0 allows no difference.
QUANTITIES = {
    "token ids": 0, "weights": 0, "hidden states": 1, "attention": 1, "logits": 1, "loss": 1,
    "gradients": 10, "answers": 0,
}  # fmt: skip
_LAST = 10**6  # order of computation: after all forward passes
_SEED = 42  # of the labels
_TOKENS = 1024  # per batch: at least two of the longest windows

_TEXTS = (
    "In 1904 the oil lamp of Skarvholm gave way to a mantle lamp that burned paraffin, four times "
    "as bright. The engineer Ingeborg Løvås, who planned the change, also moved the bell to a hut "
    "of its own and had it driven by a weight. The works cost 2,350 kroner and took eleven days.",
    "A cable from the mainland brought electricity in the summer of 1938. It lay on the sea bed "
    "for 5.2 kilometres and was broken by an anchor in its second winter, so the keepers went back "
    "to paraffin until May. A diesel engine in the cellar is started on the first of each month.",
    "Visitors come by boat from Eidvik, a crossing of forty minutes, and only while the wind is "
    "below seven metres per second. They carry drinking water, since the cistern holds no more "
    "than the roof collects. Seals rest on the skerries until June 🦭, where nobody may land then.",
)
# The first context has more than 384 words, so it exceeds one window with any tokenizer.
SAMPLES = (
    Example(
        "long", "Who planned the change?", "\n".join(f"{i} {t}" for i in "123" for t in _TEXTS)
    ),
    Example("mantle lamp", "Who planned the change to a mantle lamp?", _TEXTS[0]),
    Example("cable", "Why did the keepers go back to paraffin?", _TEXTS[1]),
    Example("visitors", "How long is the crossing?", _TEXTS[2]),
    Example("short", "What did the lamp burn?", "Its lamp burned rapeseed oil."),
)


# --- the two sides -------------------------------------------------------------------------------


def compare_checkpoint(
    model: str,
    questions: Path | None = None,
    *,
    max_samples: int,
    overrides: Overrides,
    bound: float,
    revision: str | None = None,
    allow_bin: bool = False,
) -> Comparison:
    """Load a checkpoint on both sides and compare all quantities from token ids to answers.

    Args:
        model: folder, name under weights/, or name on the hub; if it has no S and E, both sides
            get the same random ones.
        questions: file in any format of ``read_examples``; None uses ``SAMPLES``.
        max_samples: number of questions, from the start.
        overrides: sliding-window settings that replace those of the checkpoint.
        bound: largest relative difference of a forward pass.
        revision, allow_bin: see ``find_folder``.

    Raises:
        UserError: transformers is not installed, one side cannot load the checkpoint, or the
            questions are invalid.
    """
    examples = list(SAMPLES) if questions is None else read_examples(questions)
    check_examples(examples, str(questions))
    examples = examples[:max_samples]
    limit_onednn_cache()
    library = import_transformers()
    folder = find_folder(model, revision=revision, allow_bin=allow_bin)
    ours, tokenizer, report = load_for_training(str(folder), allow_bin=allow_bin)
    settings = overrides.windows(
        read_decoding_file(folder)[0] or default_window_settings(ours.config)
    )
    check_window_fits(ours.config, settings)
    theirs, their_tokenizer = load_with_transformers(library, folder)
    if questions is None:
        examples += _added_token_example(their_tokenizer)
    windows = make_windows(examples, tokenizer, settings)
    if report.initialized:
        theirs.qa_outputs.load_state_dict(ours.head.state_dict())
    rows = {name: Row(name, times * bound) for name, times in QUANTITIES.items()}
    left_out = compare_windows(rows["token ids"], examples, windows, settings, their_tokenizer)
    compare_weights(rows["weights"], ours, theirs, report.source)
    scores = compare_passes(rows, ours, theirs, examples, windows)
    qa = QuestionAnswerer(  # prepacks our model, which has no gradients afterwards
        ours, tokenizer, settings, DecodingSettings(decoder="top20"), local_runtime("cpu", "fp32")
    )
    compare_answers(rows["answers"], qa, examples, windows, scores, bound)
    lengths = windows.lengths.tolist()
    facts = [
        f"{report.source}: {len(report.loaded)} tensors; torch {torch.__version__}, "
        f"transformers {library.__version__}, float32 on the CPU",
        f"S and E: {'random, the checkpoint has none' if report.initialized else 'loaded'}",
        f"data: {counted(len(examples), 'question')}, {counted(len(lengths), 'window')} of "
        f"{min(lengths)} to {max(lengths)} tokens, from {questions or 'this command'}",
    ]
    if left_out:
        facts.append(
            "token ids not compared, because a text contains a special token such as [SEP]: "
            f"{counted(left_out, 'question')}"
        )
    return Comparison(tuple(facts), tuple(rows.values()))


def import_transformers() -> Any:
    """Import transformers, an optional dependency, and silence its log.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers  # late: optional, and takes seconds
    except ImportError as error:
        raise UserError(
            f"transformers: must be installed for the comparison, got {error}: run "
            'pip install "transformers>=5.0"'
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def load_with_transformers(library: Any, folder: Path) -> tuple[Any, Any]:
    """Load model and tokenizer of a checkpoint folder with transformers.

    Raises:
        UserError: transformers cannot load the folder.
    """
    try:
        model = library.AutoModelForQuestionAnswering.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, num_labels=2,
            local_files_only=True,
        )  # fmt: skip
        tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many types
        raise UserError(
            f"{folder}: transformers cannot load it ({type(error).__name__}: {reason(error)}): "
            "complete config.json, weights and tokenizer"
        ) from error
    return model.eval(), tokenizer


# --- quantities ----------------------------------------------------------------------------------


def _added_token_example(their_tokenizer: Any) -> list[Example]:
    """Return a question about a text with the added tokens of the vocabulary, if it has any."""
    added = [token for token in their_tokenizer.get_added_vocab() if token.strip()]
    markers = [token for token in added if token not in _special_tokens(their_tokenizer)][:100]
    text = f"In the margin stood {' '.join(markers)}, and once more {''.join(markers)}."
    return [Example("added tokens", "What stood in the margin?", text)][: len(markers)]


def _special_tokens(their_tokenizer: Any) -> list[str]:
    """Return the special tokens, such as [SEP], which bertqa reads as plain text in a passage."""
    return [t for t in their_tokenizer.special_tokens_map.values() if isinstance(t, str)]


def compare_windows(
    row: Row,
    examples: Sequence[Example],
    windows: WindowSet,
    settings: WindowSettings,
    their_tokenizer: Any,
) -> int:
    """Compare token ids, token types and offsets of all windows with those of transformers.

    Truncated questions are skipped, and those with a special token such as [SEP] in a text.

    Returns:
        Number of questions skipped because of a special token.
    """
    left_out = 0
    for i, example in enumerate(examples):
        texts = f"{example.question}\n{example.context}"
        if any(token in texts for token in _special_tokens(their_tokenizer)):
            left_out += 1
        elif not windows.cut_questions[i]:
            mine = [windows[w] for w in windows.of_examples(i, i + 1)]
            got = [(w.input_ids, w.token_type_ids, w.offsets) for w in mine]
            if got != list(_their_windows(their_tokenizer, example, settings)):
                row.note(row.largest + 1, f"question {example.id!r}")
    return left_out


def _their_windows(
    tokenizer: Any, example: Example, settings: WindowSettings
) -> Iterator[tuple[list[int], list[int], list[tuple[int, int] | None]]]:
    """Yield token ids, token types and offsets, as transformers' run_qa computes them.

    Raises:
        UserError: the tokenizer of transformers fails.
    """
    try:
        encoded = tokenizer(
            example.question, example.context, truncation="only_second",
            max_length=settings.max_seq_length, stride=settings.doc_stride,
            return_overflowing_tokens=True, return_offsets_mapping=True, return_token_type_ids=True,
        )  # fmt: skip
    except Exception as error:  # of many types
        raise UserError(
            f"question {example.id!r}: transformers' {type(tokenizer).__name__} fails on it "
            f"({type(error).__name__}: {reason(error)}): use a model with another tokenizer"
        ) from error
    for i, (ids, types) in enumerate(
        zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)
    ):
        sides = zip(encoded["offset_mapping"][i], encoded.sequence_ids(i), strict=True)
        yield ids, types, [tuple(offset) if side == 1 else None for offset, side in sides]


def named_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of either model by their names in checkpoints."""
    is_ours = isinstance(model, BertForQuestionAnswering)
    return {checkpoint_name(n) if is_ours else n: p for n, p in model.named_parameters()}


def compare_weights(row: Row, ours: nn.Module, theirs: nn.Module, source: Path) -> None:
    """Compare the weights that the two sides loaded."""
    expected = named_parameters(theirs)
    for name, weight in named_parameters(ours).items():
        row.see(weight, expected[name], f"{name} of {source}")


# Values of a window: (quantity, location) -> tensor, in the order of computation. Hidden states are
# (L, D), attention (H, L, L), logits (2, L), the loss is a scalar.
Values = dict[tuple[str, str], Tensor]
Gradients = dict[str, Tensor]  # of the sum of a batch's losses, by names in checkpoints


def compare_passes(
    rows: Mapping[str, Row],
    ours: BertForQuestionAnswering,
    theirs: Any,
    examples: Sequence[Example],
    windows: WindowSet,
) -> dict[int, Tensor]:
    """Compare forward and backward passes; return transformers' logits ``(2, L)`` by window."""
    # Random labels: with the right ones a good model would have gradients near zero, which consist
    # of rounding errors.
    generator = torch.Generator().manual_seed(_SEED)
    drawn = torch.rand(2, len(windows), generator=generator).sort(dim=0).values
    labels = windows.context_starts + (drawn * windows.count).long()
    scores: dict[int, Tensor] = {}
    for chosen in token_budget_batches(windows.lengths, _TOKENS):
        batch, numbers = collate(windows, chosen), chosen.tolist()
        asked = [f"question {examples[int(windows.example[n])].id!r}" for n in numbers]
        expected, their_gradients = their_pass(theirs, batch, labels[:, chosen])
        scores |= {n: v["logits", ""] for n, v in zip(numbers, expected, strict=True)}
        for implementation in IMPLEMENTATIONS:
            how = f"({implementation} attention)"
            ours.set_attention_implementation(implementation)
            # Recording attention would replace the fused implementation by the reference.
            got, gradients = our_pass(
                ours, batch, labels[:, chosen], with_attention=implementation == "reference"
            )
            for question, mine, reference in zip(asked, got, expected, strict=True):
                _see_window(rows, mine, reference, f"{how}, {question}")
            names = ", ".join(dict.fromkeys(asked))
            _see_gradients(rows["gradients"], gradients, their_gradients, f"{how}, {names}")
    return scores


def _see_window(rows: Mapping[str, Row], mine: Values, reference: Values, where: str) -> None:
    # A loss near zero is a difference of logits, with their rounding errors.
    scale = max(largest(reference["loss", ""]), largest(reference["logits", ""]))
    for order, (key, expected) in enumerate(reference.items()):
        quantity, layer = key
        if key in mine:
            magnitude = scale if quantity == "loss" else 0.0
            location = f"{layer} {where}".strip()
            rows[quantity].see(mine[key], expected, location, order, magnitude)


def our_pass(
    ours: BertForQuestionAnswering, batch: PackedBatch, labels: Tensor, *, with_attention: bool
) -> tuple[list[Values], Gradients]:
    """Run all windows as one packed batch."""
    states, attentions = hidden_state_names(ours), attention_names(ours) * with_attention
    with record(ours, [*states, *attentions]) as seen:
        output = ours(batch)
    losses = window_losses(output, batch.lengths, labels[0], labels[1])
    logits = torch.stack([output.start_logits, output.end_logits]).split(list(batch.lengths), dim=1)
    hidden = [seen[name].split(list(batch.lengths)) for name in states]
    values = [
        _values([h[i] for h in hidden], [seen[n][i] for n in attentions], logits[i], losses[i])
        for i in range(len(losses))
    ]
    return values, _gradients(ours, losses.sum())


def their_pass(theirs: Any, batch: PackedBatch, labels: Tensor) -> tuple[list[Values], Gradients]:
    """Run the windows one by one, so that their loss includes no padding."""
    sizes = list(batch.lengths)
    ids, types = batch.input_ids.split(sizes), batch.token_type_ids.split(sizes)
    values: list[Values] = []
    total = torch.zeros(())
    for row, kinds, (start, end) in zip(ids, types, labels.T, strict=True):
        output = theirs(
            input_ids=row[None], token_type_ids=kinds[None],
            attention_mask=torch.ones_like(row)[None], start_positions=start[None],
            end_positions=end[None], output_hidden_states=True, output_attentions=True,
        )  # fmt: skip
        loss = 2 * output.loss  # theirs is half the sum
        total = total + loss
        logits = torch.cat([output.start_logits, output.end_logits])
        states, attentions = (
            [x[0] for x in xs] for xs in (output.hidden_states, output.attentions)
        )
        values.append(_values(states, attentions, logits, loss))
    return values, _gradients(theirs, total)


def _values(
    states: Sequence[Tensor], attentions: Sequence[Tensor], logits: Tensor, loss: Tensor
) -> Values:
    values = {("hidden states", "embeddings"): states[0]}
    for n, state in enumerate(states[1:]):
        if attentions:
            values["attention", f"layer {n}"] = attentions[n]
        values["hidden states", f"layer {n}"] = state
    values |= {("logits", ""): logits, ("loss", ""): loss}
    return {key: value.detach() for key, value in values.items()}


def _gradients(model: nn.Module, loss: Tensor) -> Gradients:
    parameters = named_parameters(model)
    found = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def _see_gradients(row: Row, mine: Gradients, reference: Gradients, where: str) -> None:
    """Compare gradients, each relative to the largest gradient of its parameter.

    Some parameters shift all inputs of a softmax by the same constant, so their exact gradient is
    zero: the key bias shifts all scores of a query, the biases of the head and of the last
    LayerNorm all logits. Their differences are relative to the largest gradient of all parameters.
    """
    layers = [name for name in reference if name.endswith("attention.self.key.bias")]
    last = f"bert.encoder.layer.{len(layers) - 1}.output.LayerNorm.bias"
    scale = max(map(largest, reference.values()))
    for name, gradient in reference.items():
        is_zero = name in (*layers, "qa_outputs.bias", last)
        row.see(mine[name], gradient, f"{name} {where}", _LAST, scale if is_zero else 0.0)


# --- answers -------------------------------------------------------------------------------------


def compare_answers(
    row: Row,
    qa: QuestionAnswerer,
    examples: Sequence[Example],
    windows: WindowSet,
    scores: Mapping[int, Tensor],
    bound: float,
) -> None:
    """Compare our answers, as ``bertqa infer --decoder top20`` finds them, with run_qa's.

    Different answers count as equal if their scores tie within the bound, since rounding decides
    between them.
    """
    tie = 2 * bound * max(map(largest, scores.values()))  # a score is the sum of two logits
    for i, (example, prediction) in enumerate(zip(examples, qa.answer(examples), strict=True)):
        spans = [(-math.inf, 0, 0)]
        for number in windows.of_examples(i, i + 1):
            spans += _spans(scores[number], windows[number].offsets, qa.decoding)
        score, *offsets = max(spans)
        start, end = snap_to_graphemes(example.context, *offsets)
        is_same = example.context[start:end] == prediction.text
        if not is_same and not abs(prediction.answers[0].score - score) <= tie:
            row.note(row.largest + 1, f"question {example.id!r}", _LAST)


def _spans(
    scores: Tensor, offsets: Sequence[Any], decoding: DecodingSettings
) -> Iterator[tuple[float, int, int]]:
    """Yield score, start and end of the spans from the best starts and ends of one window."""
    starts, ends = scores.tolist()
    best = scores.argsort(dim=1, descending=True)[:, : decoding.n_best_size].tolist()
    for i, j in product(*best):
        if offsets[i] and offsets[j] and 0 <= j - i < decoding.max_answer_length:
            yield starts[i] + ends[j], offsets[i][0], offsets[j][1]
