"""What the tests of the analyses share: a classifier without a detector around it, and folders that look like runs."""

import json

import torch
from torch import nn

from eql_d2.losses import ClassifierLoss
from tests.conftest import tiny_config
from tests.losses.helpers import random_labels

NUM_FEATURES = 6


class Classifier(nn.Module):
    """A linear layer and a loss, named as in a box predictor."""

    classifies_regions = True

    def __init__(self, loss: ClassifierLoss, scale: bool = False):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.cls_score = nn.Linear(NUM_FEATURES, loss.num_logits).double()
        with torch.no_grad():
            for parameter in self.cls_score.parameters():
                parameter.normal_(generator=generator)
        self.cls_scale = nn.Parameter(torch.linspace(0.5, -2, loss.num_logits).double()) if scale else None
        self.classifier_loss = loss

    def forward(self, features, gt_classes, verified=None):
        logits = self.cls_score(features)
        logits = logits if self.cls_scale is None else logits * self.cls_scale
        return self.classifier_loss(logits, gt_classes, verified)


def regions(seed: int, num_classes: int, num_regions: int = 13):
    """Return features ``[R, D]``, labels ``[R]`` with background among them, verified ``[R, K]``."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_regions, NUM_FEATURES, generator=generator, dtype=torch.float64)
    verified = torch.rand(num_regions, num_classes, generator=generator) < 0.3
    return features, random_labels(num_regions, num_classes, seed), verified


def ap_rows(values, **columns):
    """Return rows as evaluation leaves them: mask AP ``values``, in the order of the labels."""
    return [
        {"id": i + 1, "name": f"class_{i}", "group": "ffcrr"[i], "bbox_AP": None, "segm_AP": value, **columns}
        for i, value in enumerate(values)
    ]


def make_run(folder, name, source, loss="EQL", ap=None, *opts):
    """Write what a run leaves that needs no training: config, counts and, with ``ap``, the per-category table."""
    run = folder / name
    run.mkdir()
    (run / "config.yaml").write_text(tiny_config(source, "Mask-R-CNN-FPN", loss, *opts).dump())
    (run / "category_frequency.json").write_text((source / "frequency.json").read_text())
    if ap is not None:
        table = run / "inference" / "some_val" / "per_category_ap.json"
        table.parent.mkdir(parents=True)
        table.write_text(json.dumps(ap_rows(ap)))
    return run
