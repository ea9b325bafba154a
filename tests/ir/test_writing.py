"""What is written at once takes the place of files only: links stay, devices and pipes are written to."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from superscaler.ir.writing import refuse_place, write_at_once


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    write_at_once(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"new"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    """As ``/dev/null`` and ``/dev/stdout`` are: whoever may replace them must not."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=write_at_once, args=(tmp_path / "pipe", b"all of it"))
    writer.start()
    assert (tmp_path / "pipe").read_bytes() == b"all of it"
    writer.join()
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_directory_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write_at_once(tmp_path, b"x")


@pytest.mark.parametrize(
    ("name", "error"),
    [(".", IsADirectoryError), ("nowhere/file", FileNotFoundError), ("file/inside", NotADirectoryError)],
)
def test_where_nothing_can_be_written_is_known_before(tmp_path: Path, name: str, error: type[OSError]) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(error):
        refuse_place(tmp_path / name)
    with pytest.raises(error):
        write_at_once(tmp_path / name, b"x")


@pytest.mark.parametrize("name", ["new", "file", "link", "pipe"])
def test_what_can_be_written_is_not_refused_nor_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    refuse_place(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]
    assert (tmp_path / "file").read_bytes() == b"old"
