"""The demo of specialized students: three small ones on CIFAR-10, where a few classes are popular.

One knows only the popular classes, one knows two more, and one, of the same architecture and
budget, knows all. The teacher is that of the shipped pair.
"""

from ebjr.data.preprocess import Preprocess
from ebjr.demo.cifar10 import CLASSES, load
from ebjr.demo.flow import Demo
from ebjr.tasks.specialized.known_classes import Traffic

ORDER = (4, 6, 2, 7, 3, 5, 9, 0, 8, 1)
"""The classes by popularity, drawn at random: CIFAR-10 has equally many images of each."""

TRAFFIC = Traffic(0.95, ORDER[:3])
"""Nineteen of twenty inputs are deer, frogs or birds. With a smaller share the student of all
classes saves as much or more; the report's second table shows from which share on."""

DEMO = Demo(
    task="specialized",
    title="EBJR on CIFAR-10: students of a few popular classes",
    data="the 10,000 images of the CIFAR-10 test set",
    load=lambda progress: load("test", progress=progress),
    goal={"goal": "match-teacher", "tolerance": 0.005},
    preprocess=Preprocess(size=32),
    about={"labels": CLASSES},
    students={
        "knows-3": {"known_classes": ORDER[:3]},
        "knows-5": {"known_classes": ORDER[:5]},
        "knows-all": {"task": "classification"},
    },
    teacher_of="classification",
    traffic=TRAFFIC,
)
"""The three students are recorded once with the teacher, and compared on the mix."""
