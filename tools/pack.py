"""Pack shipped outcomes as small as a zip can be: python -m tools.pack FILE.npz ..."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from ebjr.files import write_whole

EPOCH = (1980, 1, 1, 0, 0, 0)  # the same bytes each time


def pack(path: Path) -> None:
    """Write the members of an .npz file anew, in its place, compressed by LZMA."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with write_whole(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as new:
        for name, content in members.items():
            new.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_LZMA)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        pack(Path(name))
