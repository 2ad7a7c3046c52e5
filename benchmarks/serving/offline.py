"""Both sessions in bare loops without a server: the most that a cascade on these cores can reach.

``offline.py STUDENT TEACHER IMAGES THRESHOLD SECONDS WORKERS THREADS BATCH [shared]``; needs NumPy
and ONNX Runtime alone. Each worker answers batches of its own and gathers the deferred rows to
dense teacher batches. Prints images per second, core milliseconds of an image, and the median
milliseconds of one image in a session of one thread.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import numpy as np
import onnxruntime


def main() -> None:
    """Answer the images again and again until the time is over."""
    paths, images = sys.argv[1:3], np.load(sys.argv[3])
    threshold, seconds = float(sys.argv[4]), float(sys.argv[5])
    workers, threads, size = map(int, sys.argv[6:9])
    bare = milliseconds_of_one(open_session(paths[0], 1), images)
    pairs = [[open_session(path, threads) for path in paths] for _ in range(workers)]
    if sys.argv[9:]:
        pairs = pairs[:1] * workers
    counts = [0] * workers
    for pair in pairs:  # the first calls allocate
        for session in pair:
            ask(session, images[:size])

    def work(number: int) -> None:
        student, teacher = pairs[number]
        waiting: list[np.ndarray] = []
        while time.perf_counter() < until:
            start = (counts[number] + number * len(images) // 2) % (len(images) - size + 1)
            batch = images[start : start + size]
            logits = ask(student, batch)
            shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
            waiting.extend(batch[shifted.max(axis=1) / shifted.sum(axis=1) < threshold])
            while len(waiting) >= size:
                ask(teacher, np.stack(waiting[:size]))
                del waiting[:size]
            counts[number] += size

    began, spent = time.perf_counter(), time.process_time()
    until = began + seconds
    running = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    figures = {
        "images_per_second": round(sum(counts) / seconds, 1),
        "core_milliseconds": round(1e3 * spent / sum(counts), 3),
        "one_image_milliseconds": round(bare, 3),
    }
    print(json.dumps(figures))


def ask(session: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    """Logits of images."""
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def milliseconds_of_one(session: onnxruntime.InferenceSession, images: np.ndarray) -> float:
    """The median time of one image in a session."""
    times = []
    for image in images[:250]:
        began = time.perf_counter()
        ask(session, image[None])
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times[50:]))


def open_session(path: str, threads: int) -> onnxruntime.InferenceSession:
    """Open a session on `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
