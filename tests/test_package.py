"""The package as a whole: what imports without Detectron2, and which Detectron2 is refused."""

import subprocess
import sys
import textwrap

import pytest

from eql_d2 import compat
from eql_d2.errors import InputError

WITHOUT_DETECTRON2 = textwrap.dedent(
    """
    import sys
    sys.modules["detectron2"] = None  # any import of it raises ImportError
    import torch
    from eql_d2.data.frequency import CategoryFrequency
    from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY, EqualizationLoss
    frequency = CategoryFrequency.from_counts([5000, 120, 8, 3], num_images=6000)
    loss = EqualizationLoss(frequency, lambda_=1.76e-3)
    logits = torch.randn(16, loss.num_logits, requires_grad=True)
    loss(logits, torch.randint(0, 5, (16,))).backward()
    assert logits.grad.abs().sum() > 0 and loss.scores(logits).shape == (16, 5)
    print(len([name for name, _ in CLASSIFIER_LOSS_REGISTRY]))
    try:
        import eql_d2.config
    except ValueError as error:
        print(error)
    """
)


def test_losses_need_no_detectron2_and_the_rest_says_that_it_does():
    done = subprocess.run([sys.executable, "-c", WITHOUT_DETECTRON2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    count, message = done.stdout.strip().splitlines()
    assert int(count) >= 17
    assert message.startswith("Detectron2 cannot be imported") and "make setup" in message


def test_this_detectron2_is_named():
    assert compat.check_detectron2().startswith("Detectron2 ")


def test_an_old_detectron2_is_refused(tmp_path, monkeypatch):
    """The release 0.6 of 2021 carries the version string of today's main branch, but not its code."""
    heads = tmp_path / "detectron2" / "modeling" / "roi_heads"
    heads.mkdir(parents=True)
    (tmp_path / "detectron2" / "__init__.py").write_text('__version__ = "0.6"\n')
    (heads / "fast_rcnn.py").write_text("class FastRCNNOutputLayers: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"Detectron2 0.6 .* is too old .* Supported: upstream main"):
        compat.check_detectron2()
