"""A tiny random model, a batch for it, and its scores."""

import pytest
import torch
from torch import Tensor, nn

from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.config import BertConfig
from bertqa.model.packing import PackedBatch
from tests.helpers import TINY, our_batch, random_windows


@pytest.fixture
def model() -> BertForQuestionAnswering:
    torch.manual_seed(0)
    model = BertForQuestionAnswering(BertConfig(**TINY)).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:  # so large that each part affects the output
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def batch() -> PackedBatch:
    return our_batch(*random_windows())


def scores(model: BertForQuestionAnswering, batch: PackedBatch) -> Tensor:
    """Return both logits; dropout masks, if any, are always the same."""
    torch.manual_seed(3)
    with torch.inference_mode(not model.training):
        return torch.stack(tuple(model(batch)))
