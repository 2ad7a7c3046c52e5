"""Generate the sources of the site: python -m docs.make."""

from __future__ import annotations

import shutil

from docs.make import command_line, live_curve, measured
from docs.make.sources import BUILD, DOCS, PARTS, SOURCES, gather, navigation


def main() -> None:
    """Write everything that Zensical reads to ``build/``."""
    shutil.rmtree(BUILD, ignore_errors=True)
    PARTS.mkdir(parents=True)
    (PARTS / "cli.md").write_text(command_line.reference())
    for name, text in measured.parts().items():
        (PARTS / name).write_text(text)
    pages = gather(navigation())
    shutil.copytree(DOCS / "assets", SOURCES / "assets", dirs_exist_ok=True)
    live_curve.write(SOURCES / "assets" / "live.html")
    print(f"{pages} files for the site, in {SOURCES}")


if __name__ == "__main__":
    main()
