#!/usr/bin/env python
"""Write the weights that `make demo` starts from: 5.0 MB, since matrices and filters have 8 bits a number.

eql-d2 reproduce run mini_methods --only softmax
python tools/make_demo_start.py output/tables/runs/softmax-seed0-*/model_final.pth
"""

import argparse
from pathlib import Path
from typing import Dict

import torch
from torch import Tensor

from eql_d2.errors import run_tool
from eql_d2.experiments.demo import START
from eql_d2.weights import in_8_bits, read_checkpoint, write_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    model: Dict[str, Tensor] = {}
    for name, value in read_checkpoint(parser.parse_args().checkpoint)["model"].items():
        if torch.as_tensor(value).is_floating_point():
            model.update(in_8_bits(name, torch.as_tensor(value)))
    write_checkpoint(START, {"model": model})
    print(f"{START}: {START.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_tool(main)
