"""Write a trained detector as one file, for ONNX Runtime or TorchScript, and compare it with the model on images.

    eql-d2 export --config-file output/config.yaml --output model.onnx --images photographs/ \\
        --opts MODEL.WEIGHTS output/model_final.pth

The first image is traced, all are compared. ONNX needs onnx and onnxruntime: pip install "eql_d2[export]".
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from eql_d2.commands.predict import image_paths, read_image
from eql_d2.config import load_config
from eql_d2.export import compare_detector, export_detector
from eql_d2.predictor import Predictor


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="the config of the model")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="FILE.onnx or FILE.ts (TorchScript)")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="images and folders of images")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides: KEY VALUE ...")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_arguments(argv)
    paths = image_paths(args.images)
    predictor = Predictor(load_config(args.config_file, args.opts), device="cpu")
    export_detector(predictor, read_image(paths[0]), args.output)
    print(f"{args.output}: {compare_detector(predictor, [read_image(path) for path in paths], args.output)}")
