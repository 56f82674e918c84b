"""Files of weights: what each format holds comes out, hostile ones execute nothing, damaged ones are said to be so."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone

from eql_d2.commands.convert_checkpoint import main as convert
from eql_d2.config import get_cfg
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.errors import InputError
from eql_d2.weights import read_checkpoint, unpickle, write_checkpoint


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def arrays():
    """Arrays of the kinds and layouts that files of weights hold."""
    return {
        "float": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
        "big end first": np.arange(3, dtype=">i4"),
        "half": np.ones(2, np.float16),
        "scalar": np.float32(0.5),
        "no axis": np.array(7),
        "empty": np.zeros((0, 3), np.int64),
        "truth": np.array([True, False]),
        "names": np.array(["a", "bcd"]),
        "bytes": np.array([b"a", b"bcd"]),
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol(protocol):
    found = unpickle(pickle.dumps({"in": [arrays()], "also": (arrays(),)}, protocol))
    for part in (*found["in"], *found["also"]):
        for name, expected in arrays().items():
            np.testing.assert_array_equal(part[name], expected)
            assert part[name].dtype == np.asarray(expected).dtype.newbyteorder("="), name
    found["in"][0]["float"][0, 0] = 1  # they may be written to


@pytest.mark.parametrize("protocol", [2, 4])
def test_plain_values_shared_parts_and_circles(protocol):
    shared = {"a": np.ones(2)}
    content = [None, True, 1, 2**70, 0.5, "text", b"", b"bytes", {1, 2}, (), (1, "a"), OrderedDict(b=3)]
    assert unpickle(pickle.dumps(content, protocol)) == content
    first, second = unpickle(pickle.dumps([shared, {"b": shared}], protocol))
    assert second["b"] is first and first["a"].tolist() == [1, 1]
    circle = [shared]
    circle.append(circle)
    found = unpickle(pickle.dumps(circle, protocol))
    assert found[1] is found and found[0]["a"].tolist() == [1, 1]


@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_s_tensors_in_a_pickle(protocol):
    state = OrderedDict(a=torch.arange(6.0).reshape(2, 3).T, b=torch.nn.Parameter(torch.ones(2)), c=torch.tensor(3))
    state._metadata = OrderedDict({"": {"version": 1}})
    found = unpickle(pickle.dumps(state, protocol))
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_detectron2_s_zoo(tmp_path):
    path = tmp_path / "zoo.pkl"
    content = {"model": {"a": np.ones((2, 2), np.float32)}, "__author__": "somebody", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    found = read_checkpoint(path)
    assert found["__author__"] == "somebody" and found["matching_heuristics"] is True
    np.testing.assert_array_equal(found["model"]["a"], content["model"]["a"])


def python2_pickle(blobs):
    """Return what Python 2's cPickle writes for a dict of float32 arrays: protocol 2, with strings of bytes."""
    out = b"\x80\x02}("
    for name, value in blobs.items():
        raw, shape = value.tobytes(), b"".join(b"K" + bytes([size]) for size in value.shape)
        out += b"U" + bytes([len(name)]) + name.encode()
        out += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        out += (
            b"(K\x01("
            + shape
            + b"tcnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        out += b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    return out + b"u."


@pytest.mark.parametrize("with_blobs", [True, False])
def test_caffe2_s_files_into_a_backbone(tmp_path, with_blobs):
    """Caffe2's names find their places, through a file that Python 2 wrote."""
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2"]
    model = torch.nn.ModuleDict({"backbone": build_resnet_backbone(cfg, ShapeSpec(channels=3))})
    values = np.random.default_rng(0).random((64, 3, 7, 7), np.float32)
    blobs = {
        "conv1_w": values,
        "conv1_w_momentum": values,
        "res2_0_branch2a_w": values.reshape(-1)[:4096].reshape(64, 64, 1, 1),
    }
    content = python2_pickle(blobs)
    if with_blobs:
        content = b"\x80\x02}U\x05blobs" + content[2:-1] + b"s."
    (tmp_path / "R-50.pkl").write_bytes(content)
    LongTailCheckpointer(model).load(str(tmp_path / "R-50.pkl"))
    state = model.state_dict()
    np.testing.assert_array_equal(state["backbone.stem.conv1.weight"].numpy(), values)
    np.testing.assert_array_equal(state["backbone.res2.0.conv1.weight"].numpy(), blobs["res2_0_branch2a_w"])
    # From a file that holds no code the same weights come.
    convert([str(tmp_path / "R-50.pkl"), str(tmp_path / "R-50.safetensors"), "--layout", "detectron2"])
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    LongTailCheckpointer(model).load(str(tmp_path / "R-50.safetensors"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_pycls(tmp_path):
    path = tmp_path / "model.pyth"
    torch.save({"model_state": {"s1.weight": torch.ones(2), "s1.num_batches_tracked": torch.ones(())}}, path)
    found = read_checkpoint(path)
    assert list(found["model"]) == ["s1.weight"] and found["matching_heuristics"]
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(InputError, match=r"model\.pyth is no checkpoint of pycls"):
        read_checkpoint(path)


@pytest.mark.parametrize("key", ["model", "state_dict", ""])
def test_torch_s_files(tmp_path, key):
    state = {"a": torch.ones(2), "b": torch.zeros(())}
    torch.save({key: state, "iteration": 3} if key else state, tmp_path / "weights.pth")
    found = read_checkpoint(tmp_path / "weights.pth")
    assert list(found["model"]) == ["a", "b"] and "matching_heuristics" not in found


def test_safetensors_there_and_back(tmp_path):
    base = torch.arange(6.0)
    model = {
        "a": base.reshape(2, 3).T,
        "b": base[1:],
        "half": torch.ones(2).half(),
        "array": np.ones(3),
        "n": torch.tensor(4),
    }
    write_checkpoint(tmp_path / "a.safetensors", {"model": model})
    found = read_checkpoint(tmp_path / "a.safetensors")
    assert set(found) == {"model"} and set(found["model"]) == set(model)
    for name, value in model.items():
        assert (
            torch.equal(found["model"][name], torch.as_tensor(value))
            and found["model"][name].dtype == torch.as_tensor(value).dtype
        )
    with pytest.raises(InputError, match=r"holds tensors alone, not iteration, optimizer"):
        write_checkpoint(tmp_path / "b.safetensors", {"model": model, "optimizer": {}, "iteration": 3})
    assert not (tmp_path / "b.safetensors").exists()


def test_a_training_starts_from_safetensors(tmp_path):
    model = torch.nn.Linear(3, 2)
    write_checkpoint(tmp_path / "a.safetensors", {"model": model.state_dict()})
    other = torch.nn.Linear(3, 2)
    LongTailCheckpointer(other).load(str(tmp_path / "a.safetensors"))
    assert torch.equal(other.weight, model.weight) and torch.equal(other.bias, model.bias)


def test_a_query_asks_for_the_matching_of_names(tmp_path):
    torch.save({"weight": torch.ones(2, 3)}, tmp_path / "a.pth")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    LongTailCheckpointer(model).load(f"{tmp_path}/a.pth?matching_heuristics=True")
    assert torch.equal(model[0].weight, torch.ones(2, 3))
    with pytest.raises(InputError, match="matching_heuristics=True alone"):
        LongTailCheckpointer(model).load(f"{tmp_path}/a.pth?other=1")


def test_names_and_arrays_alone(tmp_path):
    for content, words in (
        ({"model": {"a": 3}}, "'a' is a int"),
        ({"model": [1]}, "holds a list"),
        (3, "holds a int"),
        ({"model": {3: torch.ones(1)}}, "3 is a Tensor"),
    ):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(InputError, match=words):
            read_checkpoint(tmp_path / "a.pth")


def test_no_pickle_is_written(tmp_path):
    write_checkpoint(tmp_path / "a.pth", {"model": {"a": torch.ones(1)}})
    with pytest.raises(InputError, match="pickles are read, but not written"):
        convert([str(tmp_path / "a.pth"), str(tmp_path / "b.pkl"), "--layout", "detectron2"])


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for name, words in (("pipe.pth", "folder or a device"), ("", "folder or a device"), ("none.pkl", "no such file")):
        with pytest.raises(InputError, match=words):
            read_checkpoint(tmp_path / name)


HOSTILE = {
    "a call": lambda marker: pickle.dumps(Touch(marker)),
    "in an array of objects": lambda marker: pickle.dumps({"model": {"a": np.array([Touch(marker)], dtype=object)}}),
    "by a dotted name": lambda marker: b"\x80\x04\x8c\x05numpy\x8c\x0dload.__class__\x93.",
    "builtins": lambda marker: b"c__builtin__\nexec\n(S'open(%r, \"w\")'\ntR." % str(marker).encode(),
    "numpy's loader": lambda marker: b"cnumpy\nload\n(S'/etc/hostname'\ntR.",
    "an attribute of a function": lambda marker: b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'__doc__'\nNstb.",
    "the type's state": lambda marker: b"cnumpy\ndtype\n(S'V8'\ntR(K\x03S'|'\nNNNK\x08K\x01K\x3ftb.",
    "an array beyond its bytes": lambda marker: (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85S'b'\ntR"
        b"(K\x01(J\xff\xff\xff\x7ftcnumpy\ndtype\n(S'f8'\ntRI00\nS'abcdefgh'\ntb."
    ),
    "a tensor beyond its bytes": lambda marker: pickle.dumps(torch.ones(3)).replace(b"K\x03\x85", b"K\x00\x85")[:-20],
    "depth": lambda marker: b"]" * 200_000 + b"a" * 199_999 + b".",
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pyth", ".safetensors"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(tmp_path, kind, suffix):
    marker = tmp_path / "marker"
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(HOSTILE[kind](marker))
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    assert f"weights{suffix}" in str(caught.value) and "\n" not in str(caught.value)
    assert not marker.exists()


def test_a_hostile_archive_of_torch(tmp_path, monkeypatch):
    """Also where the environment asks torch to trust files."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    torch.save({"model": {"a": torch.ones(2)}, "optimizer": Touch(marker)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"system"):
        read_checkpoint(tmp_path / "a.pth")
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_damaged_pickles_raise_one_exception(protocol):
    whole = pickle.dumps({"model": arrays(), "__author__": "x", "t": torch.ones(2)}, protocol)
    random = np.random.default_rng(protocol)
    outcomes = set()
    for _ in range(200):
        content = bytearray(whole)
        start = random.integers(len(whole))
        content[start : start + random.integers(1, 5)] = random.bytes(random.integers(0, 5))
        try:
            unpickle(bytes(content))
            outcomes.add("read")
        except pickle.UnpicklingError as error:
            outcomes.add(str(error).split(" ", 3)[2])
    assert len(outcomes) > 1
