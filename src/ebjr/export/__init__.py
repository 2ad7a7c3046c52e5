"""Export: student, score, router and teacher as one ``.onnx`` file, with the knob as an input.

Any ONNX runtime runs it. Its outputs are ``prediction``, ``output``, ``score``, ``deferred`` and
``stage``; the input ``threshold`` defaults to the calibrated value. The graph is built from the
models' graphs with onnx-ir, checked by onnx, and compared with the joint model on a few examples
before the file is written.
"""

from ebjr.errors import needs

with needs("export", "exporting a joint model"):
    import ndonnx  # noqa: F401
    import onnx_ir  # noqa: F401
    import onnxscript  # noqa: F401

from ebjr.export.file import Exported, export_joint
from ebjr.export.triton import export_triton

__all__ = ["Exported", "export_joint", "export_triton"]
