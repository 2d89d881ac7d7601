"""Scores to answers: decoding, metrics, evaluation, and the answerer that users call."""
