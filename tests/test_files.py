"""Files that appear whole or not at all, and folders of one process at a time."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from eql_d2.errors import InputError
from eql_d2.files import LOCK_NAME, FolderLock, whole_file, write_whole
from tests.conftest import full_disk


def test_files_appear_whole(tmp_path):
    write_whole(tmp_path / "new" / "a.html", "text")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_whole(tmp_path / "file" / "a.html", "text")


def test_a_failure_leaves_the_earlier_file(tmp_path):
    write_whole(tmp_path / "a.txt", "earlier")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a.txt") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_text() == "earlier" and len(list(tmp_path.iterdir())) == 1


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / f"a.txt.tmp{os.getpid()}").symlink_to(tmp_path / "precious")
    (tmp_path / "a.txt").symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "a.txt", "new")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "a.txt").read_text() == "new" and not (tmp_path / "a.txt").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("write", [lambda file: file.write(bytes(1 << 20)), "torch.save", "numpy.savez"])
def test_a_full_disk_leaves_the_earlier_file_and_no_other(tmp_path, write):
    path = tmp_path / "weights"
    write_whole(path, "earlier")
    with full_disk(1 << 16), pytest.raises(InputError) as info, whole_file(path) as file:
        if write == "torch.save":
            torch.save({"weight": torch.zeros(1 << 18)}, file)
        elif write == "numpy.savez":
            np.savez(file, weight=np.zeros(1 << 18))
        else:
            write(file)
    assert str(info.value) == f"{path} cannot be written (File too large); free some space or name another place."
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


HOLD = """
import os, sys, time
from eql_d2.files import FolderLock
lock = FolderLock(sys.argv[1])
if sys.argv[2] == "fork" and os.fork() == 0:
    time.sleep(60)  # as a data loader's worker that has not noticed yet
print(os.getpid(), flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["release", "kill", "kill the parent of a fork"])
def test_a_folder_of_one_process(tmp_path, end):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out"), "fork" if "fork" in end else ""]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        process = int(other.stdout.readline())
        with pytest.raises(InputError, match=rf"out is in use by process {process} on .*: two runs in one folder"):
            FolderLock(tmp_path / "out")
        if end == "release":
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "released\n"
        else:
            os.kill(process, signal.SIGKILL)
            other.wait()
        lock = FolderLock(tmp_path / "out")
        assert FolderLock(tmp_path / "out" / "..") is not lock
        again = FolderLock(tmp_path / "out")  # the same process may
        lock.release()
        again.release()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(other.pid, signal.SIGKILL)
        other.wait()


def test_a_folder_that_cannot_be_locked(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        FolderLock(tmp_path / "file" / "out")

    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    FolderLock(tmp_path).release()
    assert (tmp_path / LOCK_NAME).read_text() == ""
