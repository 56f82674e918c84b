"""Which Detectron2 this package works with, and the warnings that it provokes."""

import importlib
import inspect
import warnings
from pathlib import Path

from eql_d2.errors import InputError

#: What torch tells the authors of Detectron2, who script functions at import: nothing that a user can act on.
_QUIET = (("`torch.jit.script` is deprecated", FutureWarning), ("torch.meshgrid", UserWarning))
SUPPORTED = (
    "upstream main from September 2022 on (version string 0.6 with federated loss in FastRCNNOutputLayers), "
    "or sal-detectron2 0.7.2, which `eql-d2 install-detectron2` and `make setup` install"
)


def quiet_warnings() -> None:
    """Ignore torch's warnings to the authors of Detectron2 in this process, from now on.

    Called by the commands and by every process that :func:`eql_d2.engine.launch` starts. Importing the package leaves
    the filters of the program that imports it as they are.
    """
    for message, category in _QUIET:
        warnings.filterwarnings("ignore", message=message, category=category)


def check_detectron2() -> str:
    """Return one line that names the Detectron2 in use.

    Upstream's main branch has carried the version string 0.6 since 2021, so what is checked is what this package builds
    on: the parameters and functions of Detectron2's box predictor. Detectron2 is imported for that, without torch's
    warnings about it; the filters are afterwards as before.

    Raises:
        InputError: if Detectron2 is absent, too old, or does not work here; the message says what is supported.
    """
    try:
        detectron2 = importlib.import_module("detectron2")
    except ImportError as error:
        raise InputError(f"Detectron2 cannot be imported ({error}). Supported: {SUPPORTED}.") from None
    found = f"Detectron2 {detectron2.__version__} in {Path(detectron2.__file__).parent}"
    try:
        with warnings.catch_warnings():
            quiet_warnings()
            heads = importlib.import_module("detectron2.modeling.roi_heads.fast_rcnn")
    except Exception as error:  # an old Detectron2 with a new torch, numpy or Pillow fails in many ways
        message = f"{found} does not work here ({type(error).__name__}: {error}). Supported: {SUPPORTED}."
        raise InputError(message) from None
    parameters = inspect.signature(heads.FastRCNNOutputLayers.__init__).parameters
    if "get_fed_loss_cls_weights" not in parameters or not hasattr(heads, "_log_classification_stats"):
        raise InputError(f"{found} is too old for eql_d2. Supported: {SUPPORTED}.")
    return found
