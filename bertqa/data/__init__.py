"""Data: files -> examples -> tokens -> windows -> labels and batches; no model."""
