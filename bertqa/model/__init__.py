"""BERT itself, tensors only: no module here knows of text."""
