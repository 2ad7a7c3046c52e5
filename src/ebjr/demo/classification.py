"""The demo of classification: the shipped pair on CIFAR-10."""

from __future__ import annotations

from ebjr.data.preprocess import Preprocess
from ebjr.demo.cifar10 import CLASSES, load
from ebjr.demo.flow import Demo

DEMO = Demo(
    task="classification",
    title="EBJR on CIFAR-10: the shipped pair",
    data="the 10,000 images of the CIFAR-10 test set",
    load=lambda progress: load("test", progress=progress),
    preprocess=Preprocess(size=32),
    about={"labels": CLASSES},
)
"""Both shipped models take 32 x 32 RGB in 0..1; the rest is inside the graphs."""
