"""Which Detectron2 this package works with."""

import importlib
import warnings
from pathlib import Path

from eql_d2.errors import InputError

# torch's advice to the authors of Detectron2, which scripts functions at import, is nothing that a user can act on.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)

SUPPORTED = (
    "upstream main from September 2022 on (version string 0.6 with federated loss in FastRCNNOutputLayers), "
    "or sal-detectron2 0.7.2, which `make setup` installs"
)


def check_detectron2() -> str:
    """Return one line that names the Detectron2 in use.

    Upstream's main branch has carried the version string 0.6 since 2021, so what is checked is the code itself: the
    signatures that this package builds on.

    Raises:
        InputError: if Detectron2 is absent or too old; the message says what is supported.
    """
    try:
        detectron2 = importlib.import_module("detectron2")
    except ImportError as error:
        raise InputError(f"Detectron2 cannot be imported ({error}). Supported: {SUPPORTED}.") from None
    found = f"Detectron2 {detectron2.__version__} in {Path(detectron2.__file__).parent}"
    source = (Path(detectron2.__file__).parent / "modeling" / "roi_heads" / "fast_rcnn.py").read_text()
    if "get_fed_loss_cls_weights" not in source or "_log_classification_stats" not in source:
        raise InputError(f"{found} is too old for eql_d2. Supported: {SUPPORTED}.")
    return found
