"""Fixtures that more than one test file of evaluation uses."""

from __future__ import annotations

import pytest


@pytest.fixture
def conv_net(tmp_path):
    """An ONNX file of a small convolutional net."""
    from nets import conv_net_graph

    return conv_net_graph(tmp_path / "conv_net.onnx")
