"""Training: heads and students that make a pair out of a single model. Needs the extra torch."""
