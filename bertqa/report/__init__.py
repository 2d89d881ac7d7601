"""Charts, pages and model cards: what a person looks at after a run."""
