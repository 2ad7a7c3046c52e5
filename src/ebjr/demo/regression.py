"""The demo of regression: a small network and gradient-boosted trees on the prices of diamonds."""

from __future__ import annotations

from ebjr.demo import diamonds
from ebjr.demo.flow import Demo

DEMO = Demo(
    task="regression",
    title="EBJR on diamonds: the shipped network and trees",
    data="the 16,206 diamonds that neither model was fitted to",
    load=lambda progress: diamonds.load("test", progress=progress),
    batch_size=1024,
    goal={"goal": "match-teacher", "tolerance": 0.0017},
)
"""Both take the table's columns as they are and predict the logarithm of the price.

The tolerance is 2 % of the trees' RMSE, which is 0.088.
"""
