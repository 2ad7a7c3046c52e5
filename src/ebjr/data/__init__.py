"""Data on disk: opened, decoded, and prepared for each model."""

from importlib import import_module

_NAMES = {"open_data": "open", "decode_image": "examples", "prepared": "preprocess"}


def __getattr__(name: str) -> object:
    """Import the most used names when they are used."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
