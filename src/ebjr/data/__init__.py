"""Data on disk: opened, decoded, and prepared for each model."""
