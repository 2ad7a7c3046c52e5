"""Pages of docs/ as tests run them: their blocks, and the servers that they start."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import MappingProxyType

import numpy as np

DOCS = Path(__file__).parents[1] / "docs"
PORTS = ("--port", "--grpc-port")
FENCED = re.compile(
    r"^```([^\n]*)\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE
)
NUMBER = r"-?\d+\.\d+"


def blocks(page: str, language: str) -> list[str]:
    """The code of a page."""
    text = (DOCS / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def shown(page: str, language: str) -> list[tuple[str, str]]:
    """Each block of code of a page, and the output that the page shows right below it, or ""."""
    found = FENCED.findall((DOCS / page).read_text())
    return [(code, text) for name, code, text in found if name == language]


def check_output(printed: str, text: str) -> None:
    """Hold what a page shows against what was printed, in which `...` stands for more.

    Lines may be broken elsewhere, and figures with a point may differ by 5 %: another processor
    rounds otherwise.
    """
    place = 0
    for chunk in text.split("..."):
        parts = (r"\s+".join(map(re.escape, each.split(" "))) for each in _figureless(chunk))
        for found in re.compile(f"({NUMBER})".join(parts)).finditer(printed, place):
            figures = [found.groups(), re.findall(NUMBER, chunk)]
            if np.allclose(*np.array(figures, float).reshape(2, -1), rtol=0.05, atol=0.002):
                place = found.end()
                break
        else:
            raise AssertionError(f"the page shows\n{chunk}\nand the code prints\n{printed}")


def _figureless(text: str) -> list[str]:
    return re.split(NUMBER, re.sub(r"\s+", " ", text).strip())


def printed_by(function: Callable[[], object]) -> str:
    """What a function prints, which is printed as well."""
    with redirect_stdout(StringIO()) as found:
        function()
    print(found.getvalue(), end="")
    return found.getvalue()


def run_python(page: str, ports: Mapping[str, str] = MappingProxyType({})) -> dict:
    """Run a page's Python from top to bottom, against servers at these ports: its names.

    Each block prints what the page shows below it.
    """
    names: dict = {}
    for block, text in shown(page, "python"):
        code = compile(real(block, ports), page, "exec")
        printed = printed_by(lambda code=code: exec(code, names))
        if text:
            check_output(printed, text)
    return names


def file_of(page: str, name: str) -> str:
    """The code of a page that is in a file of its own."""
    [found] = re.findall(
        rf'```python title="{name}"\n(.*?)```', (DOCS / page).read_text(), re.DOTALL
    )
    return found


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def start(
    words: list[str], folder: Path, ports: dict[str, str], stack: ExitStack
) -> list[subprocess.Popen[str]]:
    """Run an `ebjr serve` at free ports, which `ports` then has; its server, once for each."""
    places = [words.index(option) + 1 for option in PORTS if option in words]
    for place in places:
        ports[words[place]] = words[place] = free_port()
    command = [sys.executable, "-m", "ebjr", *words[1:]]
    server = stack.enter_context(
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    )
    stack.callback(server.terminate)
    return [server] * len(places)


@contextmanager
def servers_of(page: str, folder: Path) -> Iterator[dict[str, str]]:
    """Run each `ebjr serve` of a page, at free ports: these, by the ports that it names."""
    ports: dict[str, str] = {}
    with ExitStack() as stack:
        started = []
        for line in "\n".join(blocks(page, "sh")).splitlines():
            words = line.split()
            if words[:2] != ["ebjr", "serve"]:
                continue
            started += start(words, folder, ports, stack)
        assert all("serving " in server.stdout.readline() for server in started)
        yield ports


def real(text: str, ports: Mapping[str, str]) -> str:
    """The text with the ports of the servers that run."""
    for shown, own in ports.items():
        text = text.replace(f"localhost:{shown}", f"127.0.0.1:{own}")
    return text


def run_commands(page: str, folder: Path, ports: dict[str, str]) -> str:
    """Run what a page says to a shell, servers and installations apart: what was printed.

    All that the page shows below these commands is printed by them.
    """
    lines = "\n".join(blocks(page, "sh")).splitlines()
    script = "\n".join(line for line in lines if not line.startswith(("ebjr ", "pip ")))
    done = subprocess.run(
        ["bash", "-c", f"set -eu\n{real(script, ports)}"],
        cwd=folder,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for _, text in shown(page, "sh"):
        check_output(done.stdout, text)
    return done.stdout
