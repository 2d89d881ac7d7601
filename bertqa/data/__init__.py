"""Text only: files to examples, examples to token ids, windows, labels and batches."""
