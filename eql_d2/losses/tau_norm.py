"""tau-normalisation of a trained classifier: no training, only shorter or longer weight vectors."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from eql_d2.errors import InputError

#: The values of tau that ``eql-d2 calibrate --tune`` tries.
TAUS = [tenth / 10 for tenth in range(11)]


@torch.no_grad()
def tau_normalize(
    weight: Tensor, bias: Optional[Tensor], tau: float, num_classes: Optional[int] = None
) -> Tuple[Tensor, Optional[Tensor]]:
    """Return the tau-normalised weight and bias of a linear classifier (Kang et al., arXiv 1910.09217).

    Each class's weight vector is divided by its norm to the power tau: tau 0 changes nothing, tau 1 makes all of them
    unit vectors. The bias is dropped (set to zero), as in the paper. A zero vector stays zero.

    Args:
        weight: ``[num_logits, features]``.
        bias: ``[num_logits]`` or ``None``.
        tau: in [0, 1].
        num_classes: normalise the first K rows only and keep the others, with their bias, as they are: background is
            no class of the long tail. All rows if not given.

    Raises:
        InputError: if tau is not in [0, 1].
    """
    if not 0 <= tau <= 1:
        raise InputError(f"tau is {tau}; it lies between 0 and 1.")
    rows = slice(num_classes)
    weight, bias = weight.clone(), None if bias is None else bias.clone()
    norm = weight[rows].norm(dim=1, keepdim=True)
    weight[rows] /= torch.where(norm > 0, norm, torch.ones_like(norm)) ** tau
    if bias is not None:
        bias[rows] = 0
    return weight, bias
