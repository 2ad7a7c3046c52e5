from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from ebjr.files import read_text, sha256_of, write_beside, write_whole


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def write_half(path, error):
    with write_whole(path) as file:
        file.write("half of it")
        file.flush()
        raise error


@pytest.mark.parametrize(("mode", "content"), [("w", "größer\nthan\n"), ("wb", b"\x00\xff")])
def test_a_block_that_ends_well_leaves_the_whole_file(tmp_path, mode, content):
    path = tmp_path / "result"
    with write_whole(path, mode) as file:
        file.write(content)
        assert names(tmp_path) != ["result"]
    assert path.read_bytes() == (content if mode == "wb" else content.encode())
    assert names(tmp_path) == ["result"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_block_that_fails_leaves_all_as_it_was(tmp_path, error, old):
    path = tmp_path / "result"
    if old is not None:
        path.write_text(old)
    with pytest.raises(error, match="halfway"), write_whole(path) as file:  # noqa: PT012
        file.write("half of it")
        file.flush()
        raise error("halfway")
    assert names(tmp_path) == ([] if old is None else ["result"])
    if old is not None:
        assert path.read_text() == old


def test_readers_see_the_old_file_until_the_block_ends(tmp_path):
    path = tmp_path / "result"
    path.write_text("old")
    with write_whole(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="permissions are a POSIX matter")
@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_permissions_of_any_other(tmp_path, mask, expected):
    before = os.umask(mask)
    try:
        with write_whole(tmp_path / "result") as file:
            file.write("x")
        assert stat.S_IMODE((tmp_path / "result").stat().st_mode) == expected
        assert os.umask(mask) == mask
    finally:
        os.umask(before)


def test_a_missing_folder_is_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"the folder .*absent does not exist"),
        write_whole(tmp_path / "absent" / "result"),
    ):
        pytest.fail("the block must not run")
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, which takes no files")
def test_a_folder_that_takes_no_files_is_told_by_the_files_name():
    with pytest.raises(OSError, match=r"/proc/result(\W|$)"), write_whole("/proc/result"):
        pytest.fail("the block must not run")


def test_a_path_may_be_text(tmp_path):
    with write_whole(str(tmp_path / "result")) as file:
        file.write("x")
    assert (tmp_path / "result").read_text() == "x"


@pytest.mark.parametrize("content", [b"", b"abc", b"\x00" * 3_000_000])
def test_sha256_is_that_of_the_bytes(tmp_path, content):
    (tmp_path / "data").write_bytes(content)
    assert sha256_of(tmp_path / "data") == hashlib.sha256(content).hexdigest()


def test_the_sha256_of_several_files_counts_each_ones_bytes_and_the_others_names(tmp_path):
    def found(**contents):
        for name, content in contents.items():
            (tmp_path / name).write_text(content)
        return sha256_of(*(tmp_path / name for name in contents))

    plain = found(graph="a", weights="b")
    assert plain == found(graph="a", weights="b")
    others = [found(graph="x", weights="b"), found(graph="a", weights="x"), found(graph="a")]
    others += [found(graph="a", other="b"), found(graph="a", weights="b", more="")]
    assert len({plain, *others}) == 6
    assert found(renamed="a", weights="b") == plain


def test_the_sha256_of_no_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        sha256_of(tmp_path / "absent")


def beside(path):
    with write_beside(path) as folder:
        (folder / path.name).write_bytes(b"whole")


def whole(path):
    with write_whole(path, "wb") as file:
        file.write(b"whole")


@pytest.mark.skipif(os.name != "posix", reason="pipes are a POSIX matter")
@pytest.mark.parametrize("write", [beside, whole])
def test_a_folder_or_a_pipe_is_never_replaced(tmp_path, write):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, says in (("pipe", "is a device or a pipe; give"), ("folder", "is a folder; give")):
        with pytest.raises(OSError, match=f"{name} {says} the name of a file"):
            write(tmp_path / name)
    assert names(tmp_path) == ["folder", "pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("write", [beside, whole])
def test_a_full_disk_is_said_of_the_file(tmp_path, write):
    limits = pytest.importorskip("resource", reason="no limits of a process here")
    before = limits.getrlimit(limits.RLIMIT_FSIZE)
    limits.setrlimit(limits.RLIMIT_FSIZE, (3, before[1]))
    try:
        with pytest.raises(OSError, match=r"too large: '.*result'"):
            write(tmp_path / "result")
    finally:
        limits.setrlimit(limits.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfgr\xc3\xb6\xc3\x9fer\r\n")
    assert read_text(tmp_path / "a.txt") == "größer\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_text_in_another_encoding_is_one_sentence(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes("größer".encode(encoding))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text: save it in that encoding"):
        read_text(tmp_path / "a.txt")
