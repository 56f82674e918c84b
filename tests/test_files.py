"""Files that appear whole or not at all."""

import pytest

from eql_d2.errors import InputError
from eql_d2.files import whole_file, write_whole


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
