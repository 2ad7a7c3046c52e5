"""Training heads and students that turn a single model into a pair. Needs the extra torch."""
