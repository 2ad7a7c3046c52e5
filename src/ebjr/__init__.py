"""EBJR: any cheap model and any expensive model for the same task become one model with a knob.

The cheap `student` answers every input; a score of its raw output says how well the input fits
what it knows; inputs whose score is under a threshold are deferred to the expensive `teacher`.

Read `scores`, `router`, `joint` and `curve`, in this order: they are the whole method.

Source: Akbari, Banitalebi-Dehkordi, Zhang, "EBJR: Energy-Based Joint Reasoning for Adaptive
Inference", BMVC 2021.
"""

from __future__ import annotations

from ebjr.backends import load_model
from ebjr.blend import Blend
from ebjr.calibration import calibrate
from ebjr.calibration.guarantee import Certificate
from ebjr.costs import Cost, joint_cost
from ebjr.curve import OperatingPoint, TradeOffCurve, oracle
from ebjr.data.preprocess import Preprocess, Preprocessed
from ebjr.detections import Detections, GroundTruth
from ebjr.errors import (
    CalibrationError,
    EbjrError,
    GridWarning,
    MissingExtra,
    ModelError,
    OtherModel,
    PromiseWarning,
    ProtocolError,
    RecordingNote,
    TeacherUnavailable,
)
from ebjr.evaluation import evaluate
from ebjr.joint import (
    JointAnswer,
    JointClassifier,
    JointDetector,
    JointModel,
    JointRegressor,
    SpecializedJointClassifier,
)
from ebjr.joint_file import JointConfig, load_joint, save_joint
from ebjr.known_classes import relabel, top_classes
from ebjr.link.far import FarTeacher, Link, over_link
from ebjr.link.late import LateAnswer, LateAnswers
from ebjr.metrics import METRICS, register_metric
from ebjr.model import Model
from ebjr.outcomes import Outcomes
from ebjr.recording import record, record_batches
from ebjr.regressors import BinnedRegressor, EnergyRegressor, GaussianMixture
from ebjr.router import Router
from ebjr.scores import SCORES, Score, as_score, register_score
from ebjr.study import Study, run_study

__version__ = "0.1.0"

__all__ = [
    "METRICS",
    "SCORES",
    "BinnedRegressor",
    "Blend",
    "CalibrationError",
    "Certificate",
    "Cost",
    "Detections",
    "EbjrError",
    "EnergyRegressor",
    "FarTeacher",
    "GaussianMixture",
    "GridWarning",
    "GroundTruth",
    "JointAnswer",
    "JointClassifier",
    "JointConfig",
    "JointDetector",
    "JointModel",
    "JointRegressor",
    "LateAnswer",
    "LateAnswers",
    "Link",
    "MissingExtra",
    "Model",
    "ModelError",
    "OperatingPoint",
    "OtherModel",
    "Outcomes",
    "Preprocess",
    "Preprocessed",
    "PromiseWarning",
    "ProtocolError",
    "RecordingNote",
    "Router",
    "Score",
    "SpecializedJointClassifier",
    "Study",
    "TeacherUnavailable",
    "TradeOffCurve",
    "as_score",
    "calibrate",
    "evaluate",
    "joint_cost",
    "load_joint",
    "load_model",
    "oracle",
    "over_link",
    "record",
    "record_batches",
    "register_metric",
    "register_score",
    "relabel",
    "run_study",
    "save_joint",
    "top_classes",
]
