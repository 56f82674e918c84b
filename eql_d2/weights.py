"""THE reader of files of weights: tensors, arrays and plain values come out of it, and nothing of a file is executed.

Four formats, told by the end of the name: Detectron2's, Caffe2's and anybody's ``.pkl``, pycls's ``.pyth``,
``.safetensors``, and what ``torch.save`` wrote under any other name. torch's files are read with ``weights_only``,
whatever torch's default is.
"""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Mapping, Optional, Tuple, Union

import numpy as np
import safetensors.torch
import torch

from eql_d2.errors import InputError
from eql_d2.files import whole_file, write_whole

PathLike = Union[str, os.PathLike]

SAFETENSORS = ".safetensors"
#: In safetensors: end of the name of the factors, float ``[C, 1, ...]``, of a tensor of 8-bit integers ``[C, ...]``.
SCALE = ".scale_of_8_bits"
_FLAG = "matching_heuristics"
#: Kinds of numpy's dtypes whose values are their bytes: numbers, booleans and strings, no object and no structure.
_PLAIN_KINDS = "biufcSU"


def read_checkpoint(path: PathLike) -> Dict[str, Any]:
    """Return what a file of weights holds, in the form in which Detectron2 takes it.

    Returns:
        A dict with ``model``, names and their tensors or arrays: that of the file, or its ``state_dict``, or the whole
        file. Of a file that Detectron2 is to fit into a model by the ends of the names also ``__author__`` and
        ``matching_heuristics``; of a checkpoint of a training whatever else it saved.

    Raises:
        InputError: if there is no such file, it is no file of weights, damaged, or holds anything but tensors, arrays
            and plain values.
    """
    suffix = Path(path).suffix
    if suffix == SAFETENSORS:
        return _read_safetensors(path)
    if suffix == ".pkl":
        return _named(path, _with_author(_read(path, lambda file: unpickle(file.read()))))
    content = read_torch(path)
    if suffix == ".pyth":  # nobody but pycls uses it
        model = content.get("model_state") if isinstance(content, dict) else None
        if not isinstance(model, dict):
            raise InputError(f"{path} is no checkpoint of pycls: it has no model_state.")
        model = {name: value for name, value in model.items() if not name.endswith("num_batches_tracked")}
        content = {"model": model, "__author__": "pycls", _FLAG: True}
    elif isinstance(content, dict) and "model" not in content:
        content = {"model": content.get("state_dict", content)}
    return _named(path, content)


def write_checkpoint(path: PathLike, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; as safetensors if the name ends so, else by ``torch.save``.

    Args:
        path: of the file.
        content: ``model``, and what else is to be saved; safetensors has room for ``__author__`` and
            ``matching_heuristics`` alone.

    Raises:
        InputError: if the file cannot be written, or its format has no room for the content.
    """
    if Path(path).suffix != SAFETENSORS:
        with whole_file(path) as file:
            torch.save(dict(content), file)
        return
    others = sorted(set(content) - {"model", "__author__", _FLAG})
    if others:
        raise InputError(f"{path}: {SAFETENSORS} holds tensors alone, not {', '.join(others)}; name a file .pth.")
    # Two names may stand for one tensor, which this format does not know: each has its own.
    model = {name: torch.as_tensor(value).detach().clone().contiguous() for name, value in content["model"].items()}
    metadata = {"format": "pt", "__author__": str(content.get("__author__", "")), _FLAG: str(content.get(_FLAG, False))}
    write_whole(path, safetensors.torch.save(model, metadata))


def read_torch(path: PathLike) -> Any:
    """Return what ``torch.save`` wrote, on the CPU.

    Raises:
        InputError: as :func:`read_checkpoint`.
    """
    return _read(path, _load)


def unpickle(content: bytes, encoding: str = "latin1") -> Any:
    """Return what a pickle holds: plain values, dicts, lists, tuples, sets, numpy's arrays and torch's tensors.

    Nothing else that a pickle may name is imported or called, and numpy's arrays are built anew from their bytes: it
    does not check the state of arrays and types that a pickle sets.

    Args:
        content: the pickle, of any protocol.
        encoding: of the strings of Python 2, see ``pickle.Unpickler``.

    Raises:
        pickle.UnpicklingError: if it holds anything else, or is damaged.
    """
    try:
        return _without_stand_ins(_ArrayUnpickler(io.BytesIO(content), encoding=encoding).load(), {})
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle may raise anything, as Python's manual says
        raise pickle.UnpicklingError(f"it is damaged ({type(error).__name__}: {error})") from None


def _load(file: BinaryIO) -> Any:
    if zipfile.is_zipfile(file):
        # torch writes a checksum of each tensor, and does not compare it when it reads.
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"the checksum of {damaged} does not fit")
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def _read(path: PathLike, read: Callable[[Any], Any]) -> Any:
    if not os.path.isfile(path):  # a pipe would be waited for
        there = "this is a folder or a device, no file" if os.path.exists(path) else "there is no such file"
        raise InputError(f"{path}: {there}.")
    try:
        with open(path, "rb") as file:
            return read(file)
    except Exception as error:  # torch and safetensors name no exceptions either; see unpickle()
        raise InputError(
            f"{path} is no file of tensors, arrays and plain values, or an incomplete one; nothing in it is executed "
            f"({_reason(error)})."
        ) from None


def _reason(error: Exception) -> str:
    """Return what an error says, in one line; of torch's long one not its advice to load the file all the same."""
    lines = str(error).rsplit("WeightsUnpickler error:", 1)[-1].splitlines()
    telling = [line.strip() for line in lines if line.strip() and "weights_only" not in line]
    return telling[0] if telling else type(error).__name__


def _read_safetensors(path: PathLike) -> Dict[str, Any]:
    def read(file: Any) -> Dict[str, Any]:
        with safetensors.safe_open(file.name, framework="pt") as content:
            metadata = content.metadata() or {}
            return {"metadata": metadata, "model": {name: content.get_tensor(name) for name in content.keys()}}  # noqa: SIM118

    content = _read(path, read)
    found = {"model": _widened(content["model"])}
    if content["metadata"].get(_FLAG) == "True":
        found.update({"__author__": content["metadata"].get("__author__", ""), _FLAG: True})
    return found


def in_8_bits(name: str, value: torch.Tensor) -> Dict[str, torch.Tensor]:
    """Return what stands for a parameter in a safetensors file of a quarter of its size.

    A number is a whole one from -127 to 127 times the factor of its output channel: off by half a step at most.

    Args:
        name: of the parameter.
        value: float ``[C, ...]``; a vector stays as it is.
    """
    if value.dim() < 2:
        return {name: value}
    scale = value.abs().amax(dim=tuple(range(1, value.dim())), keepdim=True).clamp(min=1e-12) / 127
    return {name: (value / scale).round().to(torch.int8), name + SCALE: scale}


def _widened(model: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Return the tensors, those in 8 bits (``name`` and ``name + SCALE``) as the numbers that they stand for."""
    scaled = {name for name in model if name + SCALE in model and model[name].dtype == torch.int8}
    scales = {name + SCALE for name in scaled}
    return {
        name: value.float() * model[name + SCALE] if name in scaled else value
        for name, value in model.items()
        if name not in scales
    }


def _with_author(content: Any) -> Any:
    """Return the content of a ``.pkl`` as Detectron2's zoo has it; Caffe2's has blobs, or nothing but blobs."""
    if not isinstance(content, dict) or ("model" in content and "__author__" in content):
        return content
    blobs = content.get("blobs", content)
    if isinstance(blobs, dict):
        blobs = {name: value for name, value in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", _FLAG: True}


def _named(path: PathLike, content: Any) -> Dict[str, Any]:
    """Check that a checkpoint's model is names and arrays."""
    model = content.get("model") if isinstance(content, dict) else content
    if not isinstance(model, dict):
        raise InputError(f"{path} holds a {type(model).__name__}; weights are a dict of names and tensors.")
    for name, value in model.items():
        if not isinstance(name, str) or not isinstance(value, (torch.Tensor, np.ndarray)):
            raise InputError(f"{path}: {name!r} is a {type(value).__name__}; weights are names and tensors.")
    return content


class _Type:
    """Stands for a numpy dtype while a pickle is read."""

    def __init__(self, code: Union[str, bytes], *_: Any):
        self.code = _text(code)
        self.order = "="

    def __setstate__(self, state: Tuple) -> None:
        self.order = _text(state[1])

    def real(self) -> np.dtype:
        dtype = np.dtype(self.code)
        if dtype.kind not in _PLAIN_KINDS:
            raise pickle.UnpicklingError(f"it holds an array of {dtype}, which are no numbers")
        return dtype.newbyteorder(self.order) if self.order in "<>" else dtype


class _Array:
    """Stands for a numpy array while a pickle is read."""

    def __init__(self, *_: Any):
        self.real = np.empty(0)

    def __setstate__(self, state: Tuple) -> None:
        shape, dtype, is_fortran, raw = state[-4:]  # the oldest have no version before these
        self.real = _from_bytes(raw, dtype, shape, "F" if is_fortran else "C")


def _from_bytes(raw: Any, dtype: _Type, shape: Any, order: str, axes: Optional[Tuple[int, ...]] = None) -> np.ndarray:
    if not isinstance(raw, (bytes, bytearray, str)):
        raise pickle.UnpicklingError("it holds an array of objects")
    data = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2's bytes
    real = dtype.real()
    # A copy, which is aligned and may be written to.
    array = np.frombuffer(data, real).astype(real.newbyteorder("="))
    return array.reshape(shape, order="C").transpose(axes) if axes is not None else array.reshape(shape, order=order)


def _scalar(dtype: _Type, raw: Any) -> Any:
    return _from_bytes(raw, dtype, (1,), "C")[0]


def _storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _text(value: Union[str, bytes]) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value


class _Call:
    """A function that a pickle may call, and of which it can set no attribute, as it could of the function itself."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets an attribute of a function")


#: What a pickle may name, by the last part of its module: numpy has moved its own from numpy.core to numpy._core.
_ALLOWED: Dict[Tuple[str, str], Callable[..., Any]] = {
    ("multiarray", "_reconstruct"): _Array,
    ("multiarray", "scalar"): _scalar,
    ("numeric", "_frombuffer"): _from_bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
    ("collections", "OrderedDict"): OrderedDict,
    ("__builtin__", "bytes"): lambda: b"",  # protocols before 3 have no other word for an empty one
    ("__builtin__", "set"): set,
    ("_utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("_utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("storage", "_load_from_bytes"): _storage,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        package, _, last = module.rpartition(".")
        if package in ("", "numpy.core", "numpy._core", "torch") and (last, name) in _ALLOWED:
            return _Call(_ALLOWED[last, name])
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is neither an array nor a plain value")


def _without_stand_ins(value: Any, seen: Dict[int, Any]) -> Any:
    """Return a value with numpy's arrays in the places of what stood for them.

    Args:
        value: of the unpickler; dicts and lists are changed in place.
        seen: what was returned for each container, by its id.
    """
    if isinstance(value, _Array):
        return value.real
    if isinstance(value, _Type):
        return value.real()
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, tuple):
        seen[id(value)] = tuple(_without_stand_ins(one, seen) for one in value)
        return seen[id(value)]
    seen[id(value)] = value
    for key, one in list(value.items() if isinstance(value, dict) else enumerate(value)):
        value[key] = _without_stand_ins(one, seen)
    return value
