"""BERT for extractive question answering, written from scratch in PyTorch."""

from bertqa.answering.answerer import QuestionAnswerer
from bertqa.errors import UserError

__all__ = ["QuestionAnswerer", "UserError"]
