"""Long-tailed object detection and instance segmentation for Detectron2.

Importing this package imports neither Detectron2 nor torch: ``eql_d2.losses`` and ``eql_d2.data.frequency`` work
without Detectron2, everything else asks for it when it is imported.
"""

from eql_d2 import compat  # noqa: F401  (quiets warnings that Detectron2 provokes, before it is imported)

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "Predictor":
        from eql_d2.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
