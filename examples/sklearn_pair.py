"""Two scikit-learn estimators become one model, on 1,797 scans of handwritten digits."""

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import ebjr

inputs, targets = load_digits(return_X_y=True)
seen, rest = slice(0, 700), slice(700, None)

cheap = make_pipeline(StandardScaler(), LogisticRegression()).fit(inputs[seen], targets[seen])
costly = SVC(gamma="scale").fit(inputs[seen], targets[seen])

student = ebjr.load_model(cheap)
teacher = ebjr.load_model(costly)  # raw output is decision_function; output= chooses another

outcomes = ebjr.record(student, teacher, inputs[rest], targets[rest])
calibration, held_out = outcomes.split(0.5, seed=0)
point = ebjr.calibrate(calibration, goal="match-teacher", tolerance=0.005)
print(ebjr.evaluate(held_out, point).verdict)

joint = ebjr.JointClassifier(student, teacher, point.router, blend=point.blend)
answer = joint(inputs[rest])
print(f"{answer.deferred.mean():.1%} of the digits went to the teacher")
