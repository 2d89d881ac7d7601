"""Whole words: groups of WordPiece tokens."""

from dataclasses import replace

import torch
from torch import Tensor

from bertqa.data.tokenization import BertTokenizer, TokenTable


def word_bounds(tokens: TokenTable, tokenizer: BertTokenizer) -> tuple[Tensor, Tensor]:
    """Return the rows of the first and the last token of each token's word, ``(tokens,)`` each.

    BERT's tokenizer splits words at blanks, punctuation and Chinese characters; all pieces of a
    word except the first begin with ##.
    """
    ids, inverse = tokens.ids.unique(return_inverse=True)
    pieces = tokenizer.tokens(ids.tolist())
    begins = torch.tensor([not each.startswith("##") for each in pieces], dtype=torch.bool)
    begins = torch.cat([begins[inverse], torch.ones(1, dtype=torch.bool)])  # one beyond the last
    begins[tokens.bounds] = True
    row = torch.arange(len(begins))
    first = torch.where(begins, row, 0).cummax(0).values[:-1]
    ends = torch.where(begins, row, len(row)).flip(0).cummin(0).values.flip(0)
    return first, ends[1:] - 1


def as_words(tokens: TokenTable, tokenizer: BertTokenizer) -> TokenTable:
    """Return the tokens with each one's offsets widened to its word."""
    first, last = word_bounds(tokens, tokenizer)
    return replace(tokens, starts=tokens.starts[first], ends=tokens.ends[last])
