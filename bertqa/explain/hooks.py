"""Record what a forward pass computes, and change it, through PyTorch's hooks.

    with record(model, ["layers.2", "layers.2.attention.probabilities"]) as seen:
        model(batch)
    seen["layers.2"]                             # (T, D), after layer 2
    seen["layers.2.attention.probabilities"][0]  # (H, L, L), of the first window

    with intervene(model, mask_heads={(2, 3)}, skip_layers={0}):
        model(batch)

Names are those of ``model.named_modules()``; layers and heads are counted from 0. Both hold for the
thread that entered them and for those that work for it, such as a ``QuestionAnswerer``'s, so that
others which share the model neither change nor are recorded. Both see what other hooks did: a
recording has the values with which the pass went on.

Masking heads follows Michel et al., "Are Sixteen Heads Really Better than One?", 2019; replacing
states by those of another run is what Vig et al., "Investigating Gender Bias in Language Models
Using Causal Mediation Analysis", 2020, and later work call activation patching.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bertqa.errors import UserError, shown
from bertqa.model.bert import BertForQuestionAnswering

Head = tuple[int, int]  # layer and head, both from 0

# What a layer calls several times: the first two once for each window, the last one after attention
# and after the feed-forward part.
_REPEATED = re.compile(r"layers\.\d+\.(attention\.probabilities|attention\.dropout|dropout)")


def hidden_state_names(model: BertForQuestionAnswering) -> list[str]:
    """The modules whose outputs are the hidden states: the embeddings, then each layer."""
    return ["embeddings", *(f"layers.{n}" for n in range(len(model.layers)))]


def attention_names(model: BertForQuestionAnswering) -> list[str]:
    """The modules whose outputs are the attention probabilities, layer by layer."""
    return [f"layers.{n}.attention.probabilities" for n in range(len(model.layers))]


def logit_lens(
    model: BertForQuestionAnswering, hidden_states: Iterable[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Apply S and E to each of the hidden states ``(T, D)``: start and end logits, ``(T,)``.

    The head has learned to read those after the last layer only.
    """
    return [model.head(hidden) for hidden in hidden_states]


# The recordings and interventions that this thread, or rather its context, is in. A pool of threads
# that works for it runs in copies of the context, as in ``Runtime.map_batches``.
_entered: ContextVar[tuple["_Hooks", ...]] = ContextVar("entered", default=())


class _Hooks(ExitStack):
    """Hooks that act in the contexts that have entered them, and are removed at the end."""

    def before(self, module: nn.Module, change: Callable[[Any], Any], **how: bool) -> None:
        """Call ``change`` with what goes into a module."""
        handle = module.register_forward_pre_hook(self._while_entered(change), **how)
        self.callback(handle.remove)

    def after(self, module: nn.Module, change: Callable[[Any, Any], Any], **how: bool) -> None:
        """Call ``change`` with what goes into a module and what comes out."""
        handle = module.register_forward_hook(self._while_entered(change), **how)
        self.callback(handle.remove)

    def _while_entered(self, change: Callable[..., Any]) -> Callable[..., Any]:
        # A function, since a copy of the model has the same functions but copies of all else: so
        # what is entered holds for the copy too, and is over for it at the same time.
        def hook(module: nn.Module, args: Any, *output: Any) -> Any:
            return change(args, *output) if self in _entered.get() else None

        return hook

    def act(self) -> None:
        """Enter all that was registered."""
        _entered.set((*_entered.get(), self))
        self.callback(
            lambda: _entered.set(tuple(other for other in _entered.get() if other is not self))
        )


# --- recording -----------------------------------------------------------------------------------


_Calls = dict[str, list[Any]]  # name of a module -> what its calls gave


class Recording(Mapping[str, Any]):
    """What modules gave in one forward pass, the last that was completed: name -> output.

    An output is a tensor, as a rule ``(T, D)``; that of ``head`` and of the model itself, whose
    name is "", is a pair of them. Of the modules that a layer calls several times it is a list, in
    the order of the calls: of ``attention.probabilities`` and ``attention.dropout`` ``(H, L, L)``
    for each window, of the layer's ``dropout`` ``(T, D)`` after attention and after the
    feed-forward part.

    Modules that have not been called yet are not in it. A pass that fails leaves it as it is. A
    single layer that a thread calls by itself replaces its output in the thread's last pass. Where
    several threads work, which pass completes last is chance: read the recording when all are done.
    """

    def __init__(self) -> None:
        self._calls: _Calls = {}

    def __getitem__(self, name: str) -> Any:
        calls = self._calls[name]
        return list(calls) if _REPEATED.fullmatch(name) else calls[-1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)


class _Passes(threading.local):
    """The calls of this thread, so that those of passes at the same time do not mix.

    Attributes:
        stack: of the last pass that was completed, then of those under way, each of which was begun
            within the one before.
    """

    def __init__(self) -> None:
        self.stack: list[_Calls] = [{}]


@contextmanager
def record(model: BertForQuestionAnswering, names: Iterable[str]) -> Iterator[Recording]:
    """Record what modules give while the context is entered; it can be read afterwards too.

    Tensors are kept as they are, with their gradient functions; an answerer's have none and take
    part in computations under ``torch.no_grad()`` only. The passes of copies of the model are
    recorded too, such as an ``Evaluator`` makes.

    A module that is recorded has a hook, and attention with hooks takes the reference
    implementation, which differs from the fused one by rounding. So do, meanwhile, passes of the
    same model in threads that record nothing, and for good a copy that is made meanwhile: copy
    before, where that matters.

    Args:
        names: of modules, such as ``hidden_state_names(model)``.

    Raises:
        UserError: the model has no module of that name, or never calls it; or one name is given
            where a list of them belongs.
    """
    if isinstance(names, str):
        raise UserError(
            f"names must be a list of a model's modules, got the text {shown(names)}: pass "
            f"[{shown(names)}]"
        )
    seen, passes = Recording(), _Passes()

    def begin(args: Any) -> None:
        passes.stack.append({})

    def complete(args: Any, output: Any) -> None:
        # None under way: it began before the recording did. No output: the pass has failed.
        done = passes.stack.pop() if len(passes.stack) > 1 else None
        if done and output is not None:
            passes.stack[0] = seen._calls = done

    def keep(name: str, args: Any, output: Any) -> None:
        calls = passes.stack[-1]
        earlier = calls.get(name, []) if _REPEATED.fullmatch(name) else []
        calls[name] = [*earlier, output]
        if len(passes.stack) == 1:
            seen._calls = calls

    def forget(name: str, args: Any) -> None:
        passes.stack[-1].pop(name, None)

    modules = {name: _module(model, name) for name in names}
    with _Hooks() as hooks:
        hooks.before(model, begin, prepend=True)
        for name, module in modules.items():
            if _REPEATED.fullmatch(name):
                hooks.before(model.get_submodule(name.rpartition(".")[0]), partial(forget, name))
            hooks.after(module, partial(keep, name))
        hooks.after(model, complete, always_call=True)
        hooks.act()
        yield seen


def _module(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        (nearest,) = get_close_matches(name, modules, n=1, cutoff=0)
        raise UserError(
            f"the model has no module {shown(name)}: name one of its own, did you mean {nearest!r}?"
        )
    module = modules[name]
    if type(module).forward is nn.Module.forward:
        raise UserError(f"{name!r} is a container, which is never called: name a module in it")
    return module


# --- intervening ---------------------------------------------------------------------------------


class Patch(NamedTuple):
    """States that replace a module's output for some tokens.

    Attributes:
        tokens: ``(k,)`` int64, positions in the batch.
        states: ``(k, D)``.
    """

    tokens: Tensor
    states: Tensor


def patch_from(seen: Mapping[str, Any], name: str, tokens: Sequence[int]) -> dict[str, Patch]:
    """The patch that gives some tokens the states that they had in another run.

    Args:
        seen: of the other run, from ``record``.
        name: of the module whose output is patched.
        tokens: positions in the batch, the same in both runs.
    """
    chosen = torch.tensor(list(tokens), dtype=torch.int64)
    return {name: Patch(chosen, seen[name][chosen])}


@contextmanager
def intervene(
    model: BertForQuestionAnswering,
    *,
    mask_heads: Iterable[Head] = (),
    mean_heads: Iterable[Head] = (),
    skip_layers: Iterable[int] = (),
    patch: Mapping[str, Patch] | None = None,
    embeddings: Tensor | None = None,
) -> Iterator[None]:
    """Change every forward pass of the model while the context is entered.

    Interventions may be nested; of two that change the same, the outer one has the last word. They
    hold for copies of the model too, such as an ``Evaluator`` makes.

    Args:
        mask_heads: heads whose output is zeros.
        mean_heads: heads whose output is, for every token, its mean over the window: they keep
            what is in the window but not where.
        skip_layers: layers whose output is replaced by their input; they are still computed.
        patch: name of a module with an output of each token ``(T, D)``, such as "layers.2" ->
            the states that replace it for some tokens.
        embeddings: ``(T, D)``, replaces the output of ``embeddings``.

    Raises:
        UserError: a layer, head, module or token that does not exist, a head that is both to be
            masked and averaged, or, in the forward pass, states or embeddings of another shape.
    """
    masked, averaged = ({(i, j) for i, j in heads} for heads in (mask_heads, mean_heads))
    skipped, patch = set(skip_layers), patch or {}
    _check(model, masked, averaged, skipped, patch)
    with _Hooks() as hooks:
        # Of one module the hook that was registered last is the first to run.
        for name, states in patch.items():
            hooks.after(_module(model, name), partial(_patching, name, states), prepend=True)
        for layer in skipped:
            module = _module(model, f"layers.{layer}")
            hooks.after(module, lambda args, output: args[0], prepend=True)
        if embeddings is not None:
            hooks.after(model.embeddings, partial(_embedding, embeddings), prepend=True)
        for layer in {layer for layer, _ in masked | averaged}:
            note, change = _changing_heads(
                [j for i, j in masked if i == layer], [j for i, j in averaged if i == layer],
                model.config.num_attention_heads,
            )  # fmt: skip
            hooks.before(_module(model, f"layers.{layer}.attention"), note, prepend=True)
            hooks.before(_module(model, f"layers.{layer}.attention.output"), change, prepend=True)
        hooks.act()
        yield


def _changing_heads(
    masked: Sequence[int], averaged: Sequence[int], num_heads: int
) -> tuple[Callable[[Any], None], Callable[[Any], Any]]:
    """Hooks before ``attention``, for the windows' lengths, and before its ``output`` layer."""
    windows = threading.local()

    def note(args: Any) -> None:
        windows.lengths = list(args[1].lengths)

    def is_in(heads: Sequence[int], like: Tensor) -> Tensor:
        chosen = [[head in heads] for head in range(num_heads)]
        return torch.tensor(chosen, device=like.device)  # (H, 1)

    def change(args: Any) -> Any:
        attn_output = args[0].unflatten(-1, (num_heads, -1))  # (T, D) -> (T, H, K)
        if averaged:
            means = [w.mean(dim=0).expand_as(w) for w in attn_output.split(windows.lengths)]
            attn_output = torch.where(is_in(averaged, attn_output), torch.cat(means), attn_output)
        attn_output = attn_output.masked_fill(is_in(masked, attn_output), 0)
        return (attn_output.flatten(1), *args[1:])

    return note, change


def _embedding(embeddings: Tensor, args: Any, output: Tensor) -> Tensor:
    """Replace the output of ``embeddings``."""
    if embeddings.shape != output.shape:
        raise UserError(
            f"what replaces 'embeddings' must have the shape {tuple(output.shape)}, a row for "
            f"each token, got {tuple(embeddings.shape)}: give those of this batch"
        )
    return embeddings.to(output)


def _patching(name: str, patch: Patch, args: Any, output: Tensor) -> Tensor:
    """Put the states of the patch into the output of the module ``name``."""
    tokens, states = patch
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(output):
        raise UserError(
            f"the patch of {name!r} is for tokens {int(tokens.min())} to {int(tokens.max())}: "
            f"name tokens from 0 to {len(output) - 1}"
        )
    if states.shape != (wanted := (len(tokens), output.shape[-1])):
        raise UserError(
            f"the patch of {name!r} must have states of the shape {wanted}, one row for each "
            f"of its tokens, got {tuple(states.shape)}: take those of this module"
        )
    return output.index_copy(0, tokens.to(output.device), states.to(output))


def _check(
    model: BertForQuestionAnswering,
    mask_heads: set[Head],
    mean_heads: set[Head],
    skip_layers: set[int],
    patch: Mapping[str, Patch],
) -> None:
    """Refuse layers, heads and modules that the model does not have."""
    layers, heads = len(model.layers), model.config.num_attention_heads
    for layer in skip_layers | {layer for layer, _ in mask_heads | mean_heads}:
        if not 0 <= layer < layers:
            raise UserError(f"layer {layer} is not there: name one of layers 0 to {layers - 1}")
    for layer, head in mask_heads | mean_heads:
        name = f"head {head} of layer {layer}"
        if not 0 <= head < heads:
            raise UserError(f"{name} is not there: name one of heads 0 to {heads - 1}")
        if (layer, head) in mask_heads & mean_heads:
            raise UserError(f"{name} is both in mask_heads and in mean_heads: drop one")
    for name in patch:
        _module(model, name)
        if name in ("", "head") or _REPEATED.fullmatch(name):
            raise UserError(
                f"{name!r} has no output of each token (T, D) to patch: name another module, such "
                "as 'layers.0'"
            )
