"""Pages of docs/ as tests run them: their blocks, and the servers that they start."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PORTS = ("--port", "--grpc-port")


def blocks(page: str, language: str) -> list[str]:
    """The code of a page."""
    text = (DOCS / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


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


def real(text: str, ports: dict[str, str]) -> str:
    """The text with the ports of the servers that run."""
    for shown, own in ports.items():
        text = text.replace(f"localhost:{shown}", f"127.0.0.1:{own}")
    return text


def run_commands(page: str, folder: Path, ports: dict[str, str]) -> str:
    """Run what a page says to a shell, servers and installations apart: what was printed."""
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
    return done.stdout
