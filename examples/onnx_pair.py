"""Two ONNX files become one model: the shipped pair on CIFAR-10 (downloaded once)."""

import numpy as np

import ebjr
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load

images, labels = load("test")
inputs = images[:600].transpose(0, 3, 1, 2).astype(np.float32) / 255
targets = labels[:600]

with shipped("student.onnx") as small, shipped("teacher.onnx") as large:
    student, teacher = ebjr.load_model(small), ebjr.load_model(large)

outcomes = ebjr.record(student, teacher, inputs, targets)  # both answer every input, once
calibration, held_out = outcomes.split(0.5, seed=0)
point = ebjr.calibrate(calibration, goal="match-teacher", tolerance=0.005)
print(ebjr.evaluate(held_out, point).verdict)

joint = ebjr.JointClassifier(student, teacher, point.router, blend=point.blend)
answer = joint(inputs[:64])
print(f"{answer.deferred.sum()} of 64 images went to the teacher")
joint.router.threshold += 0.2  # the knob: from the next batch on, more of them do
print(f"and now {joint(inputs[:64]).deferred.sum()}")
