"""Long-tailed object detection and instance segmentation for Detectron2.

Importing this package imports neither Detectron2 nor torch, registers nothing, and changes no warning filter.
``eql_d2.losses`` and ``eql_d2.data.frequency`` work without Detectron2; everything else asks for it when imported.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "Predictor":
        from eql_d2.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
