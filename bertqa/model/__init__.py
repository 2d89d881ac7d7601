"""The BERT model: tensors only, no text."""
