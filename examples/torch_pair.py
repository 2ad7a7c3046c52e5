"""Two PyTorch modules become one model, on 1,797 scans of handwritten digits."""

import numpy as np
import torch
from sklearn.datasets import load_digits

import ebjr


def train(module, images, labels, epochs):
    """Fit a module to images, the plain way."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            loss = torch.nn.functional.cross_entropy(module(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module


torch.manual_seed(0)
torch.set_num_threads(1)  # such small networks are faster on one
digits = load_digits()
images = (digits.images[:, None] / 16).astype(np.float32)
labels = digits.target
seen, rest = slice(0, 700), slice(700, None)

cheap = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
costly = torch.nn.Sequential(
    torch.nn.Conv2d(1, 32, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.Conv2d(32, 32, 3, padding=1, stride=2),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(32 * 16, 10),
)
for module in (cheap, costly):
    train(module, torch.as_tensor(images[seen]), torch.as_tensor(labels[seen]), epochs=12)

student = ebjr.load_model(cheap)
teacher = ebjr.load_model(costly)  # compile=True: torch.compile, where a C++ compiler is at hand

outcomes = ebjr.record(student, teacher, images[rest], labels[rest])
calibration, held_out = outcomes.split(0.5, seed=0)
point = ebjr.calibrate(calibration, goal="match-teacher", tolerance=0.005)
print(ebjr.evaluate(held_out, point).verdict)

joint = ebjr.JointClassifier(student, teacher, point.router, blend=point.blend)
answer = joint(torch.as_tensor(images[rest]))  # tensors in, tensors out
print(f"{float(answer.deferred.float().mean()):.1%} of the digits went to the teacher")
