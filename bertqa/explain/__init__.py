"""Model inspection: hooks, attribution, ablation, explanations, verification."""
