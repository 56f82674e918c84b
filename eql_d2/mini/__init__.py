"""Data sets with LVIS's long tail for trainings that fit a CPU: generated shapes, or photographs."""

from eql_d2.mini.generate import MiniParameters, generate_mini_dataset
from eql_d2.mini.records import lvis_statistics

__all__ = ["MiniParameters", "generate_mini_dataset", "lvis_statistics"]
