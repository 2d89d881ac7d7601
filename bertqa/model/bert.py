"""BERT for extractive question answering in one file, in reading order: leaves first.

T  tokens in the batch, of all its windows     D  hidden_size         V  vocab_size
N  windows in the batch                        H  attention heads     F  intermediate_size
L  tokens of one window                        K  head size, D / H    P  max_position_embeddings

A batch is packed (see packing.py), not padded. Embeddings, linear layers, LayerNorm and the vectors
S and E process each token ``(T, D)`` independently. Only attention and the loss depend on windows:
a token attends to the tokens of its own window, and the softmax of the loss is over the tokens of
one window. No attention mask is needed, and this file is only the mathematics of the papers:
Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
2019, section 4.2; the layer follows Vaswani et al., "Attention Is All You Need", 2017, with the
norm after the residual sum.

PyTorch's hooks work on every module here, and any module can be replaced: kernels.py fuses only
modules without hooks that have not been replaced. explain/hooks.py records and modifies the
modules' outputs.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertqa.model import kernels
from bertqa.model.config import BertConfig
from bertqa.model.packing import PackedBatch, pad_windows


class Dropout(nn.Module):
    """Inverted dropout: in training, zero elements with probability ``rate``, scale the rest."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout to a tensor of any shape."""
        return kernels.dropout(x, self.rate) if self.training and self.rate else x


class Embeddings(nn.Module):
    """Sum of word embedding, position embedding and token-type embedding, then LayerNorm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)  # (V, D)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)  # (P, D)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Embed the tokens of a batch: ids ``(T,)`` to vectors ``(T, D)``."""
        word = self.word(batch.input_ids)
        position = self.position(batch.position_ids)
        token_type = self.token_type(batch.token_type_ids)
        return self.dropout(self.norm(word + token_type + position))


class AttentionProbabilities(nn.Module):
    """Attention probabilities softmax(Q K^T / sqrt(K)) of one window."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Map 2 of ``(H, L, K)`` to ``(H, L, L)``: row i is how token i attends to all tokens."""
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        return scores.softmax(dim=-1)


Implementation = Literal["fused", "reference"]


class SelfAttention(nn.Module):
    """Multi-head self-attention within each window.

    Attributes:
        implementation: "fused" uses a kernel of kernels.py where modules allow it, "reference"
            always the method below; tests check that both give the same result.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.num_heads, self.head_size = config.num_attention_heads, config.head_size
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.probabilities = AttentionProbabilities()
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        self.implementation: Implementation = "fused"

    def forward(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Map ``(T, D)`` to ``(T, D)``."""
        # (T, D) -query, key, value-> 3 of (T, D) -split into heads-> 3 of (T, H, K)
        query, key, value = (
            x.view(-1, self.num_heads, self.head_size)
            for x in kernels.linears(hidden, (self.query, self.key, self.value))
        )
        attn_output = self._fused(query, key, value, batch)
        if attn_output is None:
            attn_output = self.reference(query, key, value, batch.lengths)
        return self.output(attn_output.flatten(1))  # (T, H, K) -> (T, D) -output-> (T, D)

    def reference(
        self, query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """Compute softmax(Q K^T / sqrt(K)) V per window: 3 of ``(T, H, K)`` to ``(T, H, K)``.

        Dropout is applied to the probabilities, as in the published BERT.
        """
        attn_outputs = []
        windows = (x.split(list(lengths)) for x in (query, key, value))
        for window in zip(*windows, strict=True):
            q, k, v = (x.transpose(0, 1) for x in window)  # (L, H, K) -> (H, L, K)
            probabilities = self.dropout(self.probabilities(q, k))  # (H, L, L)
            attn_outputs.append((probabilities @ v).transpose(0, 1))  # (H, L, K) -> (L, H, K)
        return torch.cat(attn_outputs)

    def _fused(
        self, query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch
    ) -> Tensor | None:
        """Compute ``reference`` by a kernel; None if its modules must be called, or none exists."""
        if not (
            self.implementation == "fused"
            and kernels.is_plain(self.probabilities, AttentionProbabilities)
            and kernels.is_plain(self.dropout, Dropout)
        ):
            return None
        attend = kernels.choose_attention(query, key, value)
        rate = self.dropout.rate if self.dropout.training else 0.0
        return attend(query, key, value, batch, rate) if attend else None


class FeedForward(nn.Module):
    """Position-wise feed-forward network with F hidden units."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``(T, D) -up-> (T, F) -gelu-> (T, F) -down-> (T, D)`` with the exact (erf) GELU."""
        return self.down(F.gelu(self.up(hidden)))


class Layer(nn.Module):
    """Post-LN Transformer layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Map ``(T, D)`` to ``(T, D)``."""
        hidden = self.attention_norm(hidden + self.dropout(self.attention(hidden, batch)))
        return self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))


class SpanHead(nn.Module):
    """The start vector S and the end vector E of the paper, which score the answer's bounds."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        # Rows 0 and 1 are S and E, as in the checkpoints' qa_outputs. Checkpoints also hold the
        # biases; they shift all scores equally, so they do not affect which answer is best.
        self.weight = nn.Parameter(torch.empty(2, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(2))

    @property
    def S(self) -> Tensor:
        """The start vector ``(D,)``."""
        return self.weight[0]

    @property
    def E(self) -> Tensor:
        """The end vector ``(D,)``."""
        return self.weight[1]

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(T, D)`` to the logits S.T_i and E.T_i, each ``(T,)`` in float32."""
        # Small differences of logits decide between spans: never compute them in half precision.
        with torch.autocast(hidden.device.type, enabled=False):
            scores = F.linear(hidden.float(), self.weight.float(), self.bias.float())
        start_logits, end_logits = scores.unbind(dim=-1)
        return start_logits, end_logits


class BertOutput(NamedTuple):
    """The logits S.T_i and E.T_i of each token, ``(T,)`` in float32."""

    start_logits: Tensor
    end_logits: Tensor


class BertForQuestionAnswering(nn.Module):
    """BERT encoder with the span head S and E on top."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.head = SpanHead(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize weights as transformers does: normal, biases 0, LayerNorm the identity.

        transformers also zeroes the word embedding of [PAD]; packed batches have no padding.
        BERT's authors used a normal distribution truncated at two standard deviations.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=self.config.initializer_range)

    def set_attention_implementation(self, implementation: Implementation) -> None:
        """Set "fused" or "reference" attention in all layers, see ``SelfAttention``.

        Raises:
            ValueError: ``implementation`` is neither.
        """
        if implementation not in get_args(Implementation):
            raise ValueError(f"implementation must be fused or reference, got {implementation!r}")
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.implementation = implementation

    def set_dropout(self, rate: float) -> None:
        """Set the rate of every dropout module, and both rates of the config."""
        self.config = replace(
            self.config, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate
        )
        for module in self.modules():
            if isinstance(module, Dropout):
                module.rate = rate

    def forward(self, batch: PackedBatch) -> BertOutput:
        """Return start and end logits of every token."""
        hidden = self.embeddings(batch)  # (T, D)
        for layer in self.layers:
            hidden = layer(hidden, batch)
        return BertOutput(*self.head(hidden))


def window_losses(
    output: BertOutput, lengths: Sequence[int], start_positions: Tensor, end_positions: Tensor
) -> Tensor:
    """Return the negative log-likelihood of the labelled start and end of each window, ``(N,)``.

    ``-log P_start(start) - log P_end(end)``, where P_start is the softmax of S.T_i over the tokens
    of one window and P_end that of E.T_i (Devlin et al. 2019, section 4.2). transformers halves
    this sum; the paper does not. Training minimizes its mean over the windows of a step.

    Args:
        output: logits of N windows, laid end to end.
        lengths: tokens of each window.
        start_positions, end_positions: ``(N,)`` int64, labels as positions within the window.
    """
    # Shorter windows are padded with -inf, whose softmax is 0.
    start_logits = pad_windows(output.start_logits, lengths, -math.inf)  # (N, longest L)
    end_logits = pad_windows(output.end_logits, lengths, -math.inf)
    start_loss = F.cross_entropy(start_logits, start_positions, reduction="none")
    end_loss = F.cross_entropy(end_logits, end_positions, reduction="none")
    return start_loss + end_loss
