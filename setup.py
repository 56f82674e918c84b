"""Package definition. Detectron2 is not listed: it has no official release on PyPI, see README.md, "Install"."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name="eql_d2",
    version=re.search(r'__version__ = "(.+?)"', (ROOT / "eql_d2/__init__.py").read_text()).group(1),
    description="Long-tailed object detection and instance segmentation for Detectron2: EQL, EQL v2, Softmax-EQL, EFL, "
    "ACSL, BAGS and their baselines on LVIS",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["eql_d2", "eql_d2.*"]),
    package_data={"eql_d2.experiments": ["*.yaml", "templates/*"], "eql_d2.visualization": ["templates/*"]},
    python_requires=">=3.9",
    install_requires=[
        "torch>=2.1",
        "torchvision",
        "numpy",
        "fvcore",
        "iopath",
        "pycocotools",
        "lvis",
        "opencv-python",
        "hotcoco; python_version >= '3.10'",  # elsewhere the lvis back end is used
        "msgspec",
        "scipy",
        "pandas",
        "jinja2",
        # What Detectron2 itself imports; its wheel is installed without dependencies.
        "Pillow",
        "omegaconf>=2.1,<2.4",
        "hydra-core>=1.1",
        "yacs",
        "tabulate",
        "termcolor",
        "tqdm",
        "cloudpickle",
        "matplotlib",
        "tensorboard",
        "packaging",
        "shapely",  # crops of polygons, INPUT.CROP.ENABLED
        "setuptools<81",  # Detectron2 imports pkg_resources
    ],
    extras_require={
        "dev": ["import-linter", "mypy", "pdoc", "pre-commit", "pytest", "ruff", "submitit"],
        "slurm": ["submitit"],
    },
)
