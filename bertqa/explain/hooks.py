"""PyTorch hooks that record and change the activations of a forward pass.

    with record(model, ["layers.2", "layers.2.attention.probabilities"]) as seen:
        model(batch)
    seen["layers.2"]                             # (T, D), after layer 2
    seen["layers.2.attention.probabilities"][0]  # (H, L, L), first window

    with intervene(model, mask_heads={(2, 3)}, skip_layers={0}):
        model(batch)

Names are those of ``model.named_modules()``; layers and heads are counted from 0. Both context
managers apply to the thread that enters them and to its worker threads, such as those of a
``QuestionAnswerer``; other threads that share the model are neither recorded nor changed. A
recording includes the effect of other hooks: its values are those that the next module received.

Head masking follows Michel et al., "Are Sixteen Heads Really Better than One?", 2019. Replacing
hidden states with those of another run is activation patching (Vig et al., "Investigating Gender
Bias in Language Models Using Causal Mediation Analysis", 2020).
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bertqa.errors import UserError, did_you_mean, shown
from bertqa.model.bert import BertForQuestionAnswering

Head = tuple[int, int]  # layer and head, both from 0

# Modules that a layer calls several times: the first two once per window, the last one after
# attention and after the feed-forward part.
_REPEATED = re.compile(r"layers\.\d+\.(attention\.probabilities|attention\.dropout|dropout)")


def hidden_state_names(model: BertForQuestionAnswering) -> list[str]:
    """Return the modules whose outputs are the hidden states: the embeddings, then each layer."""
    return ["embeddings", *(f"layers.{n}" for n in range(len(model.layers)))]


def attention_names(model: BertForQuestionAnswering) -> list[str]:
    """Return the modules whose outputs are the attention probabilities, in order of layers."""
    return [f"layers.{n}.attention.probabilities" for n in range(len(model.layers))]


def logit_lens(
    model: BertForQuestionAnswering, hidden_states: Iterable[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Return the start and end logits ``(T,)`` that S and E give for each hidden state ``(T, D)``.

    The head was trained on the output of the last layer only.
    """
    return [model.head(hidden) for hidden in hidden_states]


# The recordings and interventions that are active in this context. A thread pool that works for the
# context runs in copies of it, as in ``Runtime.map_batches``.
_entered: ContextVar[tuple["_Hooks", ...]] = ContextVar("entered", default=())


class _Hooks(ExitStack):
    """Hooks that are active in the contexts that entered them, and are removed on exit."""

    def before(self, module: nn.Module, change: Callable[[Any], Any], **how: bool) -> None:
        """Register a pre-hook that calls ``change`` with the inputs of a module."""
        handle = module.register_forward_pre_hook(self._while_entered(change), **how)
        self.callback(handle.remove)

    def after(self, module: nn.Module, change: Callable[[Any, Any], Any], **how: bool) -> None:
        """Register a hook that calls ``change`` with the inputs and the output of a module."""
        handle = module.register_forward_hook(self._while_entered(change), **how)
        self.callback(handle.remove)

    def _while_entered(self, change: Callable[..., Any]) -> Callable[..., Any]:
        # A function, since deepcopy of a model shares functions but copies everything else: the
        # hooks of the copy refer to the same context and end with it.
        def hook(module: nn.Module, args: Any, *output: Any) -> Any:
            return change(args, *output) if self in _entered.get() else None

        return hook

    def activate(self) -> None:
        """Activate the registered hooks in this context."""
        _entered.set((*_entered.get(), self))
        self.callback(
            lambda: _entered.set(tuple(other for other in _entered.get() if other is not self))
        )


# --- recording -----------------------------------------------------------------------------------


_Calls = dict[str, list[Any]]  # name of a module -> outputs of its calls


class Recording(Mapping[str, Any]):
    """Module outputs of the last completed forward pass: name -> output.

    An output is a tensor, usually ``(T, D)``; ``head`` and the model itself, named "", give a pair
    of tensors. Modules that a layer calls several times give a list in the order of the calls:
    ``attention.probabilities`` and ``attention.dropout`` one ``(H, L, L)`` per window, the layer's
    ``dropout`` one ``(T, D)`` after attention and one after the feed-forward part.

    Modules that have not been called are missing. A forward pass that fails leaves the recording
    unchanged. Calling a single layer directly replaces its output in the last pass of that thread.
    With several threads it is undefined which pass completes last: read the recording after all
    have finished.
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
    """Calls by thread, which keeps concurrent passes apart.

    Attributes:
        stack: the calls of the last completed pass, then those of running passes, each nested in
            the one before.
    """

    def __init__(self) -> None:
        self.stack: list[_Calls] = [{}]


@contextmanager
def record(model: BertForQuestionAnswering, names: Iterable[str]) -> Iterator[Recording]:
    """Record module outputs while the context is active; they can be read afterwards too.

    Tensors are stored without copying, with their gradient functions; those of a
    ``QuestionAnswerer`` are inference tensors, which later computations may use only under
    ``torch.no_grad()``. Copies of the model, such as an ``Evaluator`` makes, are recorded too.

    Recording registers hooks, and attention with hooks uses the reference implementation, which
    differs from the fused one by rounding. This also affects passes of the same model in other
    threads while the context is active, and permanently a copy made during that time: copy the
    model before, if that matters.

    Args:
        names: names of modules, such as ``hidden_state_names(model)``.

    Raises:
        UserError: a name that the model does not have or a module that it never calls, or a
            string instead of a list.
    """
    if isinstance(names, str):
        raise UserError(
            f"names: must be a list of module names, got the string {shown(names)}: pass "
            f"[{shown(names)}]"
        )
    seen, passes = Recording(), _Passes()

    def begin(args: Any) -> None:
        passes.stack.append({})

    def complete(args: Any, output: Any) -> None:
        # No running pass: it began before the recording. No output: the pass failed.
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
        hooks.activate()
        yield seen


def _module(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        near = did_you_mean(name, modules)
        raise UserError(f"module: must be a name in the model, got {shown(name)}{near}")
    module = modules[name]
    if type(module).forward is nn.Module.forward:
        raise UserError(
            f"module: must have a forward pass, got the container {name!r}: name a module in it"
        )
    return module


# --- intervening ---------------------------------------------------------------------------------


class Patch(NamedTuple):
    """Hidden states that replace a module's output for some tokens.

    Attributes:
        tokens: ``(k,)`` int64, positions in the batch.
        states: ``(k, D)``.
    """

    tokens: Tensor
    states: Tensor


def patch_from(seen: Mapping[str, Any], name: str, tokens: Sequence[int]) -> dict[str, Patch]:
    """Return a patch that sets some tokens to their states in another run.

    Args:
        seen: recording of the other run, from ``record``.
        name: the module whose output is patched.
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
    """Change every forward pass of the model while the context is active.

    Interventions may be nested; if two change the same output, the outer one wins. They apply to
    copies of the model too, such as an ``Evaluator`` makes.

    Args:
        mask_heads: heads whose output is set to zero.
        mean_heads: heads whose output is set to its mean over the window, the same for every token.
        skip_layers: layers whose output is replaced by their input; they are still computed.
        patch: name of a module with an output per token ``(T, D)``, such as "layers.2" -> the
            states that replace it for some tokens.
        embeddings: ``(T, D)``, replaces the output of ``embeddings``.

    Raises:
        UserError: a layer, head, module or token that does not exist, a head in both
            ``mask_heads`` and ``mean_heads``, or, in the forward pass, states or embeddings of
            another shape.
    """
    masked, averaged = ({(i, j) for i, j in heads} for heads in (mask_heads, mean_heads))
    skipped, patch = set(skip_layers), patch or {}
    _check(model, masked, averaged, skipped, patch)
    with _Hooks() as hooks:
        # With prepend, the hook of a module that is registered last runs first.
        for name, states in patch.items():
            hooks.after(_module(model, name), partial(_patched, name, states), prepend=True)
        for layer in skipped:
            module = _module(model, f"layers.{layer}")
            hooks.after(module, lambda args, output: args[0], prepend=True)
        if embeddings is not None:
            hooks.after(model.embeddings, partial(_replaced, embeddings), prepend=True)
        for layer in {layer for layer, _ in masked | averaged}:
            store_lengths, change = _head_hooks(
                [j for i, j in masked if i == layer], [j for i, j in averaged if i == layer],
                model.config.num_attention_heads,
            )  # fmt: skip
            hooks.before(_module(model, f"layers.{layer}.attention"), store_lengths, prepend=True)
            hooks.before(_module(model, f"layers.{layer}.attention.output"), change, prepend=True)
        hooks.activate()
        yield


def _head_hooks(
    masked: Sequence[int], averaged: Sequence[int], num_heads: int
) -> tuple[Callable[[Any], None], Callable[[Any], Any]]:
    """Return pre-hooks for ``attention``, which stores window lengths, and its ``output`` layer."""
    windows = threading.local()

    def store_lengths(args: Any) -> None:
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

    return store_lengths, change


def _replaced(embeddings: Tensor, args: Any, output: Tensor) -> Tensor:
    """Replace the output of ``embeddings``."""
    if embeddings.shape != output.shape:
        raise UserError(
            f"embeddings: must have the shape {tuple(output.shape)}, one row per token of the "
            f"batch, got {tuple(embeddings.shape)}"
        )
    return embeddings.to(output)


def _patched(name: str, patch: Patch, args: Any, output: Tensor) -> Tensor:
    """Insert the states of the patch into the output of the module ``name``."""
    tokens, states = patch
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(output):
        raise UserError(
            f"patch of {name!r}: tokens must be in 0 to {len(output) - 1}, got tokens "
            f"{int(tokens.min())} to {int(tokens.max())}"
        )
    if states.shape != (expected := (len(tokens), output.shape[-1])):
        raise UserError(
            f"patch of {name!r}: states must have the shape {expected}, one row per token, "
            f"got {tuple(states.shape)}"
        )
    return output.index_copy(0, tokens.to(output.device), states.to(output))


def _check(
    model: BertForQuestionAnswering,
    mask_heads: set[Head],
    mean_heads: set[Head],
    skip_layers: set[int],
    patch: Mapping[str, Patch],
) -> None:
    """Check that layers, heads and modules exist in the model.

    Raises:
        UserError: one does not, or a head is both masked and averaged.
    """
    layers, heads = len(model.layers), model.config.num_attention_heads
    for layer in skip_layers | {layer for layer, _ in mask_heads | mean_heads}:
        if not 0 <= layer < layers:
            raise UserError(f"layer: must be in 0 to {layers - 1}, got {layer}")
    for layer, head in mask_heads | mean_heads:
        if not 0 <= head < heads:
            raise UserError(f"head of layer {layer}: must be in 0 to {heads - 1}, got {head}")
        if (layer, head) in mask_heads & mean_heads:
            raise UserError(
                f"head {head} of layer {layer}: must not be in both mask_heads and mean_heads"
            )
    for name in patch:
        _module(model, name)
        if name in ("", "head") or _REPEATED.fullmatch(name):
            raise UserError(
                f"patch: module must have one output per token (T, D), such as 'layers.0', got "
                f"{name!r}"
            )
