"""Charts, HTML pages and model cards of a run."""
