"""The pair: a small network with an energy head, and gradient-boosted trees.

Both are fitted to six sevenths of the training split; the student's heads, on its frozen features,
and what the trees' number is chosen by, are the other seventh. The test split is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor

from ebjr.arrays import to_numpy
from ebjr.demo.diamonds import FEATURES, GRADES, load
from ebjr.training.energy_head import EnergyHead, train_energy_head

SEED = 0
HIDDEN = 128
HEAD_HIDDEN = 8
POINTS = 11
REACH = 3.5
"""The grid of the energy head goes this many deviations of the residual to either side."""

SIZES = [FEATURES.index(name) for name in ("carat", "x", "y", "z")]
SHAPES = [FEATURES.index(name) for name in ("depth", "table")]
COLUMN = [FEATURES.index(name) for name, grades in GRADES.items() for _ in grades]
PLACE = [float(place) for grades in GRADES.values() for place in range(len(grades))]
SMALLEST = [0.2, 3.5, 3.5, 2.0]
LARGEST = [5.0, 11.0, 11.0, 7.0]
"""Of the sizes, in carat and millimeters: the table has some of 0 and of 58."""


class Student(torch.nn.Module):
    """Two layers on the logarithms of the sizes, the shapes and the grades, one-hot."""

    def __init__(self) -> None:
        super().__init__()
        numbers = len(SIZES) + len(SHAPES)
        self.register_buffer("center", torch.zeros(numbers))
        self.register_buffer("spread", torch.ones(numbers))
        self.register_buffer("place", torch.tensor(PLACE))
        self.first = torch.nn.Linear(numbers + len(PLACE), HIDDEN)
        self.second = torch.nn.Linear(HIDDEN, HIDDEN)
        self.last = torch.nn.Linear(HIDDEN, 1)

    def numbers(self, x: torch.Tensor) -> torch.Tensor:
        """Sizes as logarithms, and shapes."""
        sizes = torch.log(x[:, SIZES].clamp(torch.tensor(SMALLEST), torch.tensor(LARGEST)))
        return torch.cat([sizes, x[:, SHAPES]], dim=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (n, HIDDEN) and predictions (n,)."""
        grades = (x[:, COLUMN] == self.place).float()
        seen = torch.cat([(self.numbers(x) - self.center) / self.spread, grades], dim=1)
        features = torch.relu(self.second(torch.relu(self.first(seen))))
        return features, self.last(features)[:, 0]

    def __call__(self, x: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for arrays of NumPy."""
        return super().__call__(torch.as_tensor(x))


@dataclass(frozen=True)
class Heads:
    """Two heads on the network's frozen features, fitted to what it is off by.

    Attributes
    ----------
    energy
        A conditional energy ``S(x, y)``.
    gaussian
        The log-variance of the residual over `scale`.
    scale
        The residual's standard deviation.
    """

    energy: EnergyHead
    gaussian: torch.nn.Linear
    scale: float

    @property
    def reach(self) -> float:
        """How far the energy's grid goes."""
        return REACH * self.scale


@dataclass(frozen=True)
class Pair:
    """Everything that is trained.

    Attributes
    ----------
    student, teacher
        The network and the trees.
    of_price, of_teacher
        Heads fitted to the true prices, and to what the teacher says: the first tell where prices
        are hard to say, the second where the teacher would say another one.
    """

    student: Student
    teacher: HistGradientBoostingRegressor
    of_price: Heads
    of_teacher: Heads

    def trunk(self, x: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and predictions, without gradients."""
        with torch.no_grad():
            return self.student(x)


def train_pair() -> Pair:
    """Train both and the heads; about a minute on one core."""
    x, y = load("train")
    order = np.random.default_rng(SEED).permutation(len(x))
    fit, rest = np.split(order, [round(len(x) * 6 / 7)])
    student = fit_student(x[fit], y[fit])
    teacher = fit_trees(x[fit], y[fit], x[rest], y[rest])
    with torch.no_grad():
        features, said = student(x[rest])
    return Pair(
        student,
        teacher,
        of_price=fit_heads(features, said, y[rest]),
        of_teacher=fit_heads(features, said, teacher.predict(x[rest])),
    )


def fit_heads(features: torch.Tensor, said: torch.Tensor, targets: np.ndarray) -> Heads:
    """Fit both heads to some targets."""
    residual = targets - to_numpy(said)
    scale = float(residual.std())
    return Heads(
        train_energy_head(features, said, targets, epochs=30, hidden=HEAD_HIDDEN, seed=SEED),
        fit_log_variance(features, residual / scale),
        scale,
    )


def fit_student(x: np.ndarray, y: np.ndarray, epochs: int = 60) -> Student:
    """Fit the network by squared error."""
    torch.manual_seed(SEED)
    student = Student()
    table, targets = torch.as_tensor(x), torch.as_tensor(y, dtype=torch.float32)
    numbers = student.numbers(table)
    student.center.copy_(numbers.mean(dim=0))
    student.spread.copy_(numbers.std(dim=0))
    with torch.no_grad():
        student.last.bias.fill_(float(y.mean()))

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return ((student(table[rows])[1] - targets[rows]) ** 2).mean()

    descend(student, loss, len(x), epochs)
    return student


def fit_log_variance(features: torch.Tensor, residual: np.ndarray) -> torch.nn.Linear:
    """Fit a Gaussian's log-variance to standardized residuals, by its likelihood."""
    torch.manual_seed(SEED)
    head = torch.nn.Linear(HIDDEN, 1)
    square = torch.as_tensor(residual, dtype=torch.float32) ** 2

    def loss(rows: torch.Tensor) -> torch.Tensor:
        found = head(features[rows])[:, 0]
        return (found + square[rows] * torch.exp(-found)).mean()

    descend(head, loss, len(features), epochs=40)
    return head


def descend(module: torch.nn.Module, loss: Any, n: int, epochs: int) -> None:
    """Adam in batches of 256, its rate falling to 0 along a cosine."""
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(n).split(256):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
        falling.step()
    module.eval()


def fit_trees(
    x: np.ndarray, y: np.ndarray, x_rest: np.ndarray, y_rest: np.ndarray
) -> HistGradientBoostingRegressor:
    """As many trees as are best on the rest, and not one more."""
    trees = HistGradientBoostingRegressor(
        max_iter=1500, learning_rate=0.05, early_stopping=True, n_iter_no_change=20,
        random_state=SEED,
    )  # fmt: skip
    return trees.fit(x, y, X_val=x_rest, y_val=y_rest)
