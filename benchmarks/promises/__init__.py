"""Promises about one batch without labels, beside the package `bargain`: see `measure`."""
