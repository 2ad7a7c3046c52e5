from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebjr.demo import cifar10
from ebjr.demo.fetch import Arrays, DataUnavailable


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def binary_tar(path: Path, splits: dict[str, Arrays]) -> Path:
    def records(images: np.ndarray, labels: np.ndarray) -> bytes:
        pairs = zip(images, labels, strict=True)
        return b"".join(bytes([k]) + x.transpose(2, 0, 1).tobytes() for x, k in pairs)

    images, labels = splits["train"]
    files = {"cifar-10-batches-bin/readme.html": b"not data"}
    rows = len(images) // 5
    for number in range(5):
        part = slice(number * rows, (number + 1) * rows)
        name = f"cifar-10-batches-bin/data_batch_{number + 1}.bin"
        files[name] = records(images[part], labels[part])
    files["cifar-10-batches-bin/test_batch.bin"] = records(*splits["test"])
    return write_tar(path, files)


def png_tar(path: Path, splits: dict[str, Arrays]) -> Path:
    def png(images: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(images.reshape(len(images), 1024, 3)).save(file, "PNG")
        return file.getvalue()

    images, labels = splits["train"]
    files = {"package/train_lables.json": json.dumps(labels.tolist()).encode()}
    rows = len(images) // 5
    for number in range(5):
        part = slice(number * rows, (number + 1) * rows)
        files[f"package/data_batch_{number + 1}.png"] = png(images[part])
    files["package/test_batch.png"] = png(splits["test"][0])
    files["package/test_lables.json"] = json.dumps(splits["test"][1].tolist()).encode()
    return write_tar(path, files)


def assert_same(left: Arrays, right: Arrays) -> None:
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


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


@pytest.mark.network
def test_the_real_test_split_has_a_thousand_images_of_each_class() -> None:
    try:
        images, labels = cifar10.load("test")
    except DataUnavailable as error:
        pytest.skip(str(error))
    assert images.shape == (10_000, 32, 32, 3)
    assert np.bincount(labels).tolist() == [1000] * len(cifar10.CLASSES)
