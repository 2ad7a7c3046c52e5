"""Both sessions in a bare loop, no server: prints images per second, and core milliseconds of one.

``offline.py STUDENT TEACHER IMAGES THRESHOLD SECONDS``; needs NumPy and ONNX Runtime alone.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import onnxruntime

BATCH = 64


def main() -> None:
    """Answer the images again and again until the time is over."""
    student, teacher = (open_session(path) for path in sys.argv[1:3])
    images, threshold, seconds = np.load(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
    done, waiting, began, spent = 0, [], time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        start = done % (len(images) - BATCH + 1) // BATCH * BATCH
        batch = images[start : start + BATCH]
        (logits,) = student.run(None, {student.get_inputs()[0].name: batch})
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        waiting.extend(batch[shifted.max(axis=1) / shifted.sum(axis=1) < threshold])
        while len(waiting) >= BATCH:
            rows, waiting = np.stack(waiting[:BATCH]), waiting[BATCH:]
            teacher.run(None, {teacher.get_inputs()[0].name: rows})
        done += BATCH
    seconds = time.perf_counter() - began
    print(done / seconds, 1e3 * (time.process_time() - spent) / done)


def open_session(path: str) -> onnxruntime.InferenceSession:
    """A session on two threads, as the server's are."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
