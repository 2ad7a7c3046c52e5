"""Speed, as ratios measured side by side in one run. Results lie in ``results/``."""
