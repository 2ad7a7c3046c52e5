"""Export: student, score, router and teacher as one ``.onnx`` file, the knob as an input.

Any runtime of ONNX runs it: inputs in; ``prediction``, ``output``, ``score``, ``deferred`` and
``stage`` out; ``threshold`` an input that has the calibrated value where none is given. The graph
is built with onnx-ir out of the models' own, checked by onnx's checker, and run beside the joint
model on a few examples before the file takes its place.
"""

from ebjr.errors import needs

with needs("export", "exporting a joint model"):
    import ndonnx  # noqa: F401
    import onnx_ir  # noqa: F401
    import onnxscript  # noqa: F401

from ebjr.export.file import Exported, export_joint
from ebjr.export.triton import export_triton

__all__ = ["Exported", "export_joint", "export_triton"]
