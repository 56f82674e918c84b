"""What ``pyproject.toml`` cannot say: the top-level folder ``configs`` is the package's, as ``eql_d2/configs``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["eql_d2", "eql_d2.*"]), "eql_d2.configs"],
    package_dir={"eql_d2.configs": "configs"},
    package_data={
        "": ["*.yaml", "templates/*"],  # of every room
        "eql_d2": ["py.typed", "detectron2.txt"],
        "eql_d2.mini": ["*.safetensors"],
        "eql_d2.configs": ["**/*.yaml"],
    },
)
