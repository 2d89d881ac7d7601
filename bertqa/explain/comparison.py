"""Two computations of one BERT side by side: this one, and transformers', for verification.py.

``theirs`` is transformers' BertForQuestionAnswering in float32, with attn_implementation="eager",
and takes one window after the other; ``ours`` takes packed batches of several. Nothing here imports
transformers.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.data.batching import collate, token_budget_batches
from bertqa.data.graphemes import snap_to_graphemes
from bertqa.data.squad import Example
from bertqa.data.tokenization import BertTokenizer
from bertqa.data.windows import WindowSet
from bertqa.errors import UserError
from bertqa.explain.differences import Differences
from bertqa.explain.hooks import attention_names, hidden_state_names, record
from bertqa.model.bert import BertForQuestionAnswering, Implementation, window_losses
from bertqa.model.checkpoint import checkpoint_name
from bertqa.model.packing import PackedBatch
from bertqa.runtime import local_runtime
from bertqa.settings import DecodingSettings, WindowSettings
from bertqa.training.optim import make_optimizer, set_learning_rate

IMPLEMENTATIONS: tuple[Implementation, ...] = ("reference", "fused")  # of our attention
_BACKWARD = 10  # gradients and steps: so many times the bound
_SEED = 42
_TOKENS = 1024  # of a batch: two of the longest windows and more

# The step's settings. AdamW's step is in proportion to its rate, and here the rate is so large that
# the step is not lost in the rounding of the weights that it is added to.
_RATE, _DECAY = 1e3, 0.01


class Sides(NamedTuple):
    """Model and tokenizer, ours and theirs."""

    ours: BertForQuestionAnswering
    tokenizer: BertTokenizer
    theirs: Any
    their_tokenizer: Any


def compare(
    sides: Sides,
    examples: Sequence[Example],
    windows: WindowSet,
    settings: WindowSettings,
    bound: float,
) -> Differences:
    """All rows. ``sides.ours`` is prepacked at the end, and gives no gradients any more."""
    found = Differences(bound, IMPLEMENTATIONS)
    ours, theirs = sides.ours, sides.theirs
    compare_windows(found, examples, windows, settings, sides.their_tokenizer)
    compare_weights(found, ours, theirs)
    labels = drawn_labels(windows)
    sums: dict[str, dict[str, Tensor]] = {}
    logits: dict[int, tuple[Tensor, Tensor]] = {}
    for chosen in token_budget_batches(windows.lengths, _TOKENS):
        batch = collate(windows, chosen)
        expected = their_pass(theirs, batch, labels[:, chosen])
        _add(sums.setdefault("theirs", {}), expected.gradients)
        for implementation in IMPLEMENTATIONS:
            ours.set_attention_implementation(implementation)
            got = our_pass(
                ours, batch, labels[:, chosen], with_attentions=implementation == "reference"
            )
            compare_passes(found, implementation, got, expected)
            _add(sums.setdefault(implementation, {}), got.gradients)
        parts = [scores.split(list(batch.lengths)) for scores in expected.logits]
        logits |= dict(zip(chosen.tolist(), zip(*parts, strict=True), strict=True))
    # The loss of a batch is the mean over its windows.
    mean = {
        side: {name: total.pop(name) / len(windows) for name in list(total)}
        for side, total in sums.items()
    }
    for implementation in IMPLEMENTATIONS:
        compare_parameters(found, "gradient", implementation, mean[implementation], mean["theirs"])
    compare_step(found, ours, theirs, mean)
    compare_answers(found, sides, examples, windows, settings, logits)
    return found


def _add(sums: dict[str, Tensor], terms: Mapping[str, Tensor]) -> None:
    for name, term in terms.items():
        sums[name] = sums[name] + term if name in sums else term


def drawn_labels(windows: WindowSet) -> Tensor:
    """A span of context tokens for each window, ``(2, W)``: starts and ends, places in it."""
    generator = torch.Generator().manual_seed(_SEED)
    drawn = torch.rand(2, len(windows), generator=generator).sort(dim=0).values
    return windows.context_starts + (drawn * windows.count).long()


class Pass(NamedTuple):
    """What one side makes of a batch of N windows with T tokens.

    Attributes:
        hidden_states: after the embeddings and after each layer, ``(T, D)``.
        attentions: for each layer and window ``(H, L, L)``.
        logits: start and end scores, ``(T,)`` each.
        losses: start's and end's together, ``(N,)``.
        gradients: of the sum of the losses, by the names of checkpoints.
    """

    hidden_states: list[Tensor]
    attentions: list[list[Tensor]]
    logits: tuple[Tensor, Tensor]
    losses: Tensor
    gradients: dict[str, Tensor]


def named_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of either model by the names of checkpoints."""
    is_ours = isinstance(model, BertForQuestionAnswering)
    return {checkpoint_name(n) if is_ours else n: p for n, p in model.named_parameters()}


def _gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    parameters = named_parameters(model)
    found = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def our_pass(
    ours: BertForQuestionAnswering, batch: PackedBatch, labels: Tensor, *, with_attentions: bool
) -> Pass:
    """All windows as one packed batch."""
    states = hidden_state_names(ours)
    attentions = attention_names(ours) if with_attentions else []
    with record(ours, [*states, *attentions]) as seen:
        output = ours(batch)
    losses = window_losses(output, batch.lengths, labels[0], labels[1])
    return Pass(
        [seen[name] for name in states],
        [seen[name] for name in attentions],
        output,
        losses,
        _gradients(ours, losses.sum()),
    )


def their_pass(theirs: Any, batch: PackedBatch, labels: Tensor) -> Pass:
    """The windows one by one, so that there is no padding among which their loss would look."""
    passes: list[Pass] = []
    sizes = list(batch.lengths)
    columns = zip(
        batch.input_ids.split(sizes), batch.token_type_ids.split(sizes), labels.T, strict=True
    )
    gradients: dict[str, Tensor] = {}
    for ids, types, (start, end) in columns:
        output = theirs(
            input_ids=ids[None], token_type_ids=types[None],
            attention_mask=torch.ones_like(ids)[None], start_positions=start[None],
            end_positions=end[None], output_hidden_states=True, output_attentions=True,
        )  # fmt: skip
        loss = 2 * output.loss  # theirs is half the sum
        _add(gradients, _gradients(theirs, loss))
        logits = (output.start_logits[0].detach(), output.end_logits[0].detach())
        states = [state[0].detach() for state in output.hidden_states]
        attentions = [[layer[0].detach()] for layer in output.attentions]
        passes.append(Pass(states, attentions, logits, loss.detach()[None], {}))
    return _joined(passes, gradients)


def _joined(passes: Sequence[Pass], gradients: dict[str, Tensor]) -> Pass:
    """Passes of one window each as one of all."""
    starts, ends = zip(*(each.logits for each in passes), strict=True)
    return Pass(
        [torch.cat(states) for states in zip(*(p.hidden_states for p in passes), strict=True)],
        [list(chain(*layer)) for layer in zip(*(p.attentions for p in passes), strict=True)],
        (torch.cat(starts), torch.cat(ends)),
        torch.cat([p.losses for p in passes]),
        gradients,
    )


def compare_passes(found: Differences, implementation: str, got: Pass, expected: Pass) -> None:
    """Embeddings, every layer, scores and losses of a batch."""
    rows = [found.row("embeddings")]
    for layer in range(len(expected.attentions)):
        looks = found.row("attention probabilities", str(layer))
        if got.attentions:
            for a, b in zip(got.attentions[layer], expected.attentions[layer], strict=True):
                looks.see(implementation, a, b)
        rows.append(found.row("hidden states", str(layer)))
    for row, a, b in zip(rows, got.hidden_states, expected.hidden_states, strict=True):
        row.see(implementation, a, b)
    for name, a, b in zip(("start", "end"), got.logits, expected.logits, strict=True):
        found.row(f"{name} logits").see(implementation, a, b)
    found.row("loss").see(implementation, got.losses, expected.losses)


# --- parameters ----------------------------------------------------------------------------------


def compare_weights(found: Differences, ours: nn.Module, theirs: nn.Module) -> None:
    """What the two readings of the files gave; every number must be the same.

    Raises:
        UserError: this transformers names its parameters in another way.
    """
    mine, expected = named_parameters(ours), named_parameters(theirs)
    if set(mine) != set(expected):
        names = ", ".join(sorted(set(mine) ^ set(expected))[:3])
        raise UserError(
            f"one of the two models has no {names}: this transformers builds another model of the "
            "folder; take transformers 5"
        )
    row = found.row("weights", times=0)
    for implementation in IMPLEMENTATIONS:
        for name, weight in mine.items():
            row.see(implementation, weight, expected[name], part=name)


def is_unseen(name: str, num_layers: int) -> bool:
    """Whether a parameter only shifts what goes into a softmax, so that its gradient is zero.

    The bias of the keys adds the same to all scores of a token that looks; the biases of the head
    and of the last LayerNorm add the same to all logits.
    """
    last = f"bert.encoder.layer.{num_layers - 1}.output.LayerNorm.bias"
    return name.endswith("self.key.bias") or name in ("qa_outputs.bias", last)


def compare_parameters(
    found: Differences,
    quantity: str,
    implementation: str,
    got: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
) -> None:
    """A tensor for each parameter; a row for each layer.

    What ``is_unseen`` has a gradient of rounding alone. It is measured by the largest of its row.
    """
    layers = {name: _layer_of(name) for name in expected}
    num_layers = 1 + max(int(layer) for layer in layers.values() if layer.isdigit())
    largest: dict[str, float] = {}
    for name, tensor in expected.items():
        largest[layers[name]] = max(largest.get(layers[name], 0.0), float(tensor.abs().max()))
    for name, tensor in expected.items():
        row = found.row(quantity, layers[name], times=_BACKWARD)
        scale = largest[layers[name]] if is_unseen(name, num_layers) else None
        part = name.removeprefix("bert.").removeprefix(f"encoder.layer.{layers[name]}.")
        row.see(implementation, got[name], tensor, part=part, magnitude=scale)


def _layer_of(name: str) -> str:
    """Where a parameter belongs: "embeddings", the number of a layer, or "S and E"."""
    parts = name.split(".")
    if parts[0] == "qa_outputs":
        return "S and E"
    return parts[3] if parts[1] == "encoder" else parts[1]


def compare_step(
    found: Differences,
    ours: BertForQuestionAnswering,
    theirs: nn.Module,
    gradients: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """How far one step of AdamW moves each parameter.

    The first step is rate * g / (|g| + epsilon) for a gradient g. With a usual epsilon of 1e-8 that
    is the rate times the sign of g, also where g is nothing but rounding, and there the two sides
    would go apart. With epsilon as large as the largest gradient the step is as exact as the
    gradient, and a wrong epsilon or weight decay still shows.
    """
    epsilon = max(float(g.abs().max()) for g in gradients["theirs"].values())
    spared = ("bias", "LayerNorm.weight")  # run_qa's no_decay
    parameters = named_parameters(theirs)
    decaying = [p for n, p in parameters.items() if not n.endswith(spared)]
    others = [p for n, p in parameters.items() if n.endswith(spared)]
    groups = [{"params": decaying, "weight_decay": _DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=_RATE, eps=epsilon)
    expected = _moved(theirs, optimizer, gradients["theirs"])
    for implementation in IMPLEMENTATIONS:
        optimizer = make_optimizer(ours, _DECAY, epsilon)
        set_learning_rate(optimizer, _RATE)
        got = _moved(ours, optimizer, gradients[implementation])
        compare_parameters(found, "AdamW step", implementation, got, expected)


@torch.no_grad()
def _moved(
    model: nn.Module, optimizer: torch.optim.Optimizer, gradients: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What a step adds to each parameter; the model is left as it was."""
    parameters = named_parameters(model)
    before = {name: parameter.clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].clone()
    optimizer.step()
    moved = {}
    for name, parameter in parameters.items():
        moved[name] = parameter - before[name]
        parameter.copy_(before[name])
        parameter.grad = None
    return moved


# --- windows and answers -------------------------------------------------------------------------


def compare_windows(
    found: Differences,
    examples: Sequence[Example],
    windows: WindowSet,
    settings: WindowSettings,
    their_tokenizer: Any,
) -> None:
    """Token ids, token types and offsets of all windows; questions that were cut are left out."""
    whole = [i for i, cut in enumerate(windows.cut_questions.tolist()) if not cut]
    different = []
    for i in whole:
        mine = [windows[w] for w in range(*windows.of_examples(i, i + 1))]
        got = [(w.input_ids, w.token_type_ids, w.offsets) for w in mine]
        if got != list(_their_windows(their_tokenizer, examples[i], settings)):
            different.append(examples[i].id)
    for implementation in IMPLEMENTATIONS:
        found.row("windows of a question", times=0).count(implementation, different, len(whole))


def _their_windows(
    tokenizer: Any, example: Example, settings: WindowSettings
) -> Iterator[tuple[list[int], list[int], list[tuple[int, int] | None]]]:
    """Ids, token types and offsets, as transformers' notebook and run_qa make them."""
    encoded = tokenizer(
        example.question, example.context, truncation="only_second",
        max_length=settings.max_seq_length, stride=settings.doc_stride,
        return_overflowing_tokens=True, return_offsets_mapping=True, return_token_type_ids=True,
        split_special_tokens=True,  # "[SEP]" in a text is text
    )  # fmt: skip
    for i, (ids, types) in enumerate(
        zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)
    ):
        sides = zip(encoded["offset_mapping"][i], encoded.sequence_ids(i), strict=True)
        yield ids, types, [tuple(offset) if side == 1 else None for offset, side in sides]


class _Best(NamedTuple):
    """The best span of a question: its score and its place in the context."""

    score: float = -math.inf
    start: int = 0
    end: int = 0


def compare_answers(
    found: Differences,
    sides: Sides,
    examples: Sequence[Example],
    windows: WindowSet,
    settings: WindowSettings,
    logits: Mapping[int, tuple[Tensor, Tensor]],
) -> None:
    """Our answers, as ``bertqa infer --decoder top20`` finds them, beside the notebook's."""
    decoding = DecodingSettings(decoder="top20")
    runtime = local_runtime("cpu", "fp32")
    qa = QuestionAnswerer(sides.ours, sides.tokenizer, settings, decoding, runtime)
    largest = max(float(scores.abs().max()) for pair in logits.values() for scores in pair)
    tie = 2 * found.bound * largest  # a score is the sum of two logits
    different = []
    for i, (example, prediction) in enumerate(zip(examples, qa.answer(examples), strict=True)):
        best = _Best()
        for number in range(*windows.of_examples(i, i + 1)):
            offsets = windows[number].offsets
            best = max([best, *_spans(*logits[number], offsets, decoding)], key=lambda s: s.score)
        start, end = snap_to_graphemes(example.context, best.start, best.end)
        same_text = example.context[start:end] == prediction.text
        if not same_text and not abs(prediction.answers[0].score - best.score) <= tie:
            different.append(example.id)
    found.row("answers", times=0).count("fused", different, len(examples))


def _spans(
    start: Tensor, end: Tensor, offsets: Sequence[Any], decoding: DecodingSettings
) -> Iterator[_Best]:
    """The best starts with the best ends of one window, where that is a span of the context."""
    starts, ends = start.tolist(), end.tolist()
    best_starts, best_ends = (
        scores.argsort(descending=True)[: decoding.n_best_size].tolist() for scores in (start, end)
    )
    for i in best_starts:
        for j in best_ends:
            if offsets[i] and offsets[j] and 0 <= j - i < decoding.max_answer_length:
                yield _Best(starts[i] + ends[j], offsets[i][0], offsets[j][1])
