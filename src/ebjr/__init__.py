"""EBJR turns a cheap model and an expensive model for the same task into one model with a knob.

The cheap `student` answers every input. A score of its raw output says how well the input fits what
it knows. Inputs whose score is under a threshold are deferred to the expensive `teacher`.

Read `scores`, `router`, `joint` and `curve`, in this order: they are the whole method.

Public names are imported on first use (PEP 562), so that `import ebjr` is fast; `__init__.pyi`
lists them for type checkers and editors.

Source: Akbari, Banitalebi-Dehkordi, Zhang, "EBJR: Energy-Based Joint Reasoning for Adaptive
Inference", BMVC 2021.
"""

from importlib import import_module

__version__ = "0.2.0"

_NAMES = {
    "backends": "load_model",
    "blend": "Blend",
    "calibration": "calibrate",
    "calibration.guarantee": "Certificate",
    "calibration.stages": "StagedPoint calibrate_stages",
    "costs": "Cost joint_cost",
    "curve": "OperatingPoint TradeOffCurve oracle",
    "data.looks": "look mirrored",
    "data.preprocess": "Preprocess Preprocessed",
    "errors": "CalibrationError EbjrError GridWarning MissingExtra ModelError OtherModel "
    "OutputWarning PromiseWarning ProtocolError RecordingNote TeacherUnavailable",
    "estimator": "JointEstimator",
    "evaluation": "evaluate",
    "hub": "JointFolder pack_joint pull_joint push_joint",
    "joint": "JointAnswer JointModel",
    "joint_file": "JointConfig load_joint save_joint",
    "link.far": "FarTeacher Link over_link",
    "link.late": "LateAnswer LateAnswers",
    "metric": "register_metric",
    "model": "Model",
    "outcomes": "Outcomes",
    "recalibration": "recalibrate",
    "recording": "record record_all record_batches",
    "router": "Router",
    "scores": "Score as_score register_score",
    "serving.app": "serve",
    "split": "split_model",
    "study": "Study run_study",
    "tasks": "METRICS SCORES",
    "tasks.classification": "JointClassifier",
    "tasks.detection": "JointDetector",
    "tasks.detection.boxes": "Detections GroundTruth",
    "tasks.detection.supervision": "from_supervision to_supervision",
    "tasks.regression": "JointRegressor",
    "tasks.regression.models": "BinnedRegressor EnergyRegressor GaussianMixture",
    "tasks.specialized": "SpecializedJointClassifier",
    "tasks.specialized.known_classes": "relabel top_classes",
    "within": "BatchCertificate PromisedAnswers answer_within",
}
"""By module: its public names."""

_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'ebjr' has no attribute {name!r}")
    value = getattr(import_module(f"ebjr.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
