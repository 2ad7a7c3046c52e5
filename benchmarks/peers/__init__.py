"""The joint loop beside what people write or install instead of it."""
