"""The generated data set: small images of shapes with LVIS's long tail, for trainings that fit a CPU."""

from eql_d2.mini.generate import MiniParameters, generate_mini_dataset, lvis_statistics

__all__ = ["MiniParameters", "generate_mini_dataset", "lvis_statistics"]
