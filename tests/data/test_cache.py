"""The packed form of a json on disk: never stale, never half written, never in the way."""

import fcntl
import multiprocessing
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import pytest

from eql_d2.data import cache
from eql_d2.data.lvis import load_lvis
from tests.data.conftest import annotation


@pytest.fixture(autouse=True)
def _cache_everything(monkeypatch, tmp_path):
    """Cache jsons of any size, and keep the user's cache folder out of it."""
    monkeypatch.setattr(cache, "MIN_CACHED_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    monkeypatch.delenv(cache.ENVIRONMENT_VARIABLE, raising=False)
    cache._cached_table.cache_clear()
    yield
    cache._cached_table.cache_clear()


@pytest.fixture
def parsed(monkeypatch):
    """A list that grows by one each time a json is parsed."""
    calls, parse = [], cache.parse_annotations

    def counting(*args):
        calls.append(args[1])
        return parse(*args)

    monkeypatch.setattr(cache, "parse_annotations", counting)
    return calls


def load(path):
    """Load as another process would."""
    cache._cached_table.cache_clear()
    return list(load_lvis(path, "images"))


def beside(path):
    return Path(f"{path}.eql_d2_cache")


def test_second_load_does_not_parse(save, content, parsed):
    path = save(content)
    first = load(path)
    assert beside(path).is_file() and len(parsed) == 1
    assert load(path) == first and len(parsed) == 1


def test_same_records_with_and_without_cache(save, content, monkeypatch):
    path = save(content)
    load(path)
    cached = load(path)
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, "off")
    assert load(path) == cached


def test_changed_json_is_never_stale(save, content, parsed):
    path = save(content)
    load(path)
    before = os.stat(path)
    content["annotations"][0]["bbox"][0] = 7
    save(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_size == before.st_size
    assert load(path)[2]["annotations"][0]["bbox"][0] == 7
    assert len(parsed) == 2
    load(path)
    assert len(parsed) == 2, "the new cache took the old one's place"


DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "a byte altered": lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
    "the footer altered": lambda data: data[:-1] + b"?",
    "something else": lambda data: b"not a cache at all" * 10,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_rebuilt_with_a_warning(save, content, parsed, caplog, damage):
    path = save(content)
    first = load(path)
    whole = beside(path).read_bytes()
    beside(path).write_bytes(DAMAGES[damage](whole))
    assert load(path) == first
    assert f"{beside(path)} is damaged" in caplog.text
    assert beside(path).read_bytes() == whole and len(parsed) == 2


def test_folder_of_the_json_is_not_writable(save, content, parsed, monkeypatch, tmp_path):
    path = save(content)
    # A folder in the cache file's place cannot be replaced by a file, whoever the user is.
    beside(path).mkdir()
    (beside(path) / "occupied").touch()
    first = load(path)
    assert load(path) == first and len(parsed) == 1
    assert len(list((tmp_path / "user_cache" / "eql_d2").iterdir())) == 1


def test_nothing_is_writable(save, content, parsed, monkeypatch, tmp_path):
    path = save(content)
    (tmp_path / "a_file").touch()
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, str(tmp_path / "a_file" / "folder"))
    first = load(path)
    assert load(path) == first and len(parsed) == 2
    assert not beside(path).exists()


def test_chosen_folder(save, content, monkeypatch, tmp_path):
    path = save(content)
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, str(tmp_path / "chosen"))
    load(path)
    assert len(list((tmp_path / "chosen").iterdir())) == 1 and not beside(path).exists()


def test_no_temporary_file_remains_after_a_failure(save, content, monkeypatch, tmp_path):
    path = save(content)

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", no_space)
        records = load(path)
    assert len(records) == 4
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_file()) == ["train.json"]


def test_small_json_is_not_cached(save, content, monkeypatch):
    monkeypatch.setattr(cache, "MIN_CACHED_BYTES", 2**20)
    path = save(content)
    load(path)
    assert not beside(path).exists()


def test_mapped_records_reach_a_process_that_was_not_forked(save, content):
    path = save(content)
    load(path)
    cache._cached_table.cache_clear()
    records = load_lvis(path, "images")
    sent = pickle.dumps(records)
    assert list(pickle.loads(sent)) == list(records)
    content["annotations"].append(annotation(6, 25, 9))
    load(save(content))
    with pytest.raises(RuntimeError, match="was replaced while it was in use"):
        pickle.loads(sent)


def load_and_report(path, barrier, results):
    """Put the number of annotations into a queue; the log of who parses is the file that ``parse`` appends to."""
    barrier.wait()
    results.put(sum(len(record["annotations"]) for record in load_lvis(path, "images")))


def test_four_processes_at_once(save, content, monkeypatch, tmp_path):
    parse = cache.parse_annotations
    log = tmp_path.parent / f"{tmp_path.name}_parsed"

    def logging_parse(*args):
        with log.open("a") as file:
            file.write("parsed\n")
        return parse(*args)

    monkeypatch.setattr(cache, "parse_annotations", logging_parse)
    content["annotations"] = [annotation(i, 12, 4) for i in range(3000)]
    path = save(content)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=load_and_report, args=(path, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [3000] * 4
    for process in processes:
        process.join()
    assert log.read_text() == "parsed\n", "one process parses, the others take its cache"
    assert sorted(entry.name for entry in Path(path).parent.iterdir()) == ["train.json", "train.json.eql_d2_cache"]
    assert load(path) == list(load_lvis(path, "images"))


def of_a_stranger(path):
    os.chown(path, 12345, 12345)


def writable_by_others(path):
    path.chmod(0o666)


def writable_by_the_group(path):
    path.chmod(0o664)


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def a_link_to_a_stranger_s(path):
    target = path.with_name("elsewhere")
    path.rename(target)
    target.chmod(0o606)
    path.symlink_to(target)


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize(
    "plant", [of_a_stranger, writable_by_others, writable_by_the_group, a_pipe, a_link_to_a_stranger_s]
)
def test_a_planted_cache_is_left_alone(save, content, parsed, caplog, monkeypatch, tmp_path, plant, chosen):
    """A sound cache with other labels, in whose place or with whose rights it may be another user's, is not used."""
    if plant is of_a_stranger and os.geteuid():
        pytest.skip("only root can give a file away")
    path = save(content)
    if chosen:
        monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, str(tmp_path / "chosen"))
    load(path)
    planted = next((tmp_path / "chosen").iterdir()) if chosen else beside(path)
    plant(planted)
    before = os.lstat(planted)
    first = load(path)
    assert len(parsed) == 2 and f"{planted} is not used" in caplog.text
    assert load(path) == first and len(parsed) == 2, "this user's own cache is used from now on"
    assert len(list((tmp_path / "user_cache" / "eql_d2").iterdir())) == 1
    assert os.lstat(planted) == before


def test_nobody_else_may_write_a_cache(save, content):
    path = save(content)
    os.chmod(path, 0o666)
    load(path)
    assert beside(path).stat().st_mode & 0o777 == 0o644


def test_nobody_is_waited_for_without_end(save, content, monkeypatch, caplog):
    """Whoever may read the json can lock it."""
    monkeypatch.setattr(cache, "LONGEST_WAIT", 0.2)
    path = save(content)
    with open(path, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert len(load(path)) == 4
    assert "going on without it" in caplog.text


NOBODY = 54321


@pytest.fixture
def open_folder():
    """A folder that every user may enter and write to, as a shared one is; pytest's own are closed."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def load_as(user, path, results):
    """Become another user, load, and put a label of the third image and how often the json was parsed into a queue."""
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    parsed, parse = [], cache.parse_annotations
    cache.parse_annotations = lambda *args: parsed.append(1) or parse(*args)
    try:
        records = load(path)
        results.put((records[2]["annotations"][0]["category_id"], len(parsed)))
    except BaseException as error:
        results.put(repr(error))
        raise


def as_user(user, path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=load_as, args=(user, path, results))
    process.start()
    found = results.get(timeout=60)
    process.join()
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_each_user_s_own_cache(open_folder, save, content, monkeypatch):
    """Neither another user nor root takes the cache that a user has left in a shared folder; each makes one, once."""
    path = str(shutil.copy(save(content), open_folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(open_folder / "first"))
    right = as_user(NOBODY, path)
    assert right[1] == 1 and os.stat(beside(path)).st_uid == NOBODY
    assert as_user(NOBODY, path) == (right[0], 0)
    for user, home in ((NOBODY + 1, "second"), (0, "third")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(open_folder / home))
        assert as_user(user, path) == (right[0], 1)
        assert as_user(user, path) == (right[0], 0)
        assert len(list((open_folder / home / "eql_d2").iterdir())) == 1
    assert os.stat(beside(path)).st_uid == NOBODY


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_s_cache_serves_everybody(open_folder, save, content):
    path = str(shutil.copy(save(content), open_folder))
    os.chmod(path, 0o644)
    load(path)
    assert as_user(NOBODY, path)[1] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("home", [None, "", "~"])
def test_no_home_and_a_user_that_the_system_does_not_know(open_folder, save, content, monkeypatch, home):
    path = str(shutil.copy(save(content), open_folder))
    os.chmod(path, 0o644)
    open_folder.chmod(0o755)
    monkeypatch.delenv("XDG_CACHE_HOME")
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", home)
    assert as_user(NOBODY, path)[1] == 1
    assert [entry.name for entry in open_folder.iterdir()] == ["train.json"]
