"""Looking inside a model: hooks, attribution, ablation, explanations, verification."""
