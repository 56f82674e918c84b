"""What a training log shows of the classifier loss, now and then."""

import torch
from detectron2.utils.events import get_event_storage

from eql_d2.losses import ClassifierLoss

#: Iterations between two readings of the loss's statistics, which make the host wait for the device: the period of
#: Detectron2's writers.
STATISTICS_PERIOD = 20


def statistics_are_due() -> bool:
    """Return whether this iteration's statistics are to be logged."""
    return (get_event_storage().iter + 1) % STATISTICS_PERIOD == 0


@torch.no_grad()
def log_loss_statistics(loss: ClassifierLoss) -> None:
    """Put the statistics of the loss's last step into the event storage, as ``long_tail/<name>``."""
    storage = get_event_storage()
    for name, value in loss.statistics().items():
        storage.put_scalar(f"long_tail/{name}", float(value))
