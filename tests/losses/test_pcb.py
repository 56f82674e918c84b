"""PCB: golden vectors of the authors' code, soft targets, the gate, and bad settings."""

import math

import pytest
import torch

from eql_d2.errors import InputError
from eql_d2.losses import SoftmaxLoss, add_regularizer
from tests.losses.helpers import assert_golden, golden, make_loss, random_labels, random_logits, step
from tests.losses.test_regularizer import regularized


def test_golden_over_six_steps():
    """Before the start, while a class was not seen, and in the second and third of three passes."""
    arrays = golden("pcb")
    loss = SoftmaxLoss(80)
    add_regularizer(loss, "PCB", {"alpha": float(arrays["alpha"]), "momentum": float(arrays["momentum"]), "start": 2})
    term = loss.regularizer
    for i in range(6):
        term.progress = arrays["iter_id"][i] / (arrays["n_iter"] - 1)
        term.num_steps.fill_(2 * int(arrays["epoch"][i] >= arrays["start_epoch"]))
        value, gradient = step(
            loss, torch.from_numpy(arrays["logits"][i]), torch.from_numpy(arrays["gt_classes"][i]).long()
        )
        assert_golden(value, arrays["loss"][i])
        assert_golden(gradient, arrays["grad"][i])
        assert_golden(term.confusion, arrays["confusion"][i])
        assert_golden(term.instance_seen, arrays["instance_seen"][i])
    assert_golden(loss.scores(torch.from_numpy(arrays["logits"][5])), arrays["last_probs"])


def slow(loss, state, logits, labels):
    """Cross-entropy whose targets are shared out, in loops; Seesaw's with its factors."""
    num_classes, alpha, total = loss.num_classes, loss.regularizer.alpha, 0
    matrix = state.setdefault("matrix", [[0.0] * num_classes for _ in range(num_classes)])
    seen = state.setdefault("seen", [0] * num_classes)
    for y in range(num_classes):
        rows = [r for r, label in enumerate(labels) if label == y]
        seen[y] += len(rows)
        if rows:
            mean = sum(torch.softmax(logits[r, :num_classes].detach(), 0) for r in rows) / len(rows)
            row = [loss.regularizer.momentum * old + 0.01 * float(new) for old, new in zip(matrix[y], mean)]
            matrix[y] = [value / sum(row) for value in row]
    for r, y in enumerate(labels):
        if loss.name == "SEESAW":
            total = total - torch.log_softmax(logits[r, num_classes:], 0)[int(y == num_classes)]
        if y == num_classes:
            total = total - (torch.log_softmax(logits[r], 0)[y] if loss.name == "SOFTMAX" else 0)
            continue
        adjusted = logits[r]
        if loss.name == "SEESAW":
            p = torch.softmax(logits[r, :num_classes].detach(), 0).tolist()
            factor = [
                min(1.0, max(seen[j], 1) / seen[y]) ** loss.p * max(1.0, p[j] / max(p[y], loss.eps)) ** loss.q
                for j in range(num_classes)
            ]
            factor[y] = 1.0
            adjusted = logits[r, :num_classes] + torch.tensor(factor, dtype=logits.dtype).log()
        log_p = torch.log_softmax(adjusted, 0)
        column = [matrix[j][y] for j in range(num_classes)]
        share = [value / sum(column) for value in column]
        moved = sum(t * (math.log(t) - log_p[j]) for j, t in enumerate(share))
        total = total - (1 - alpha) * log_p[y] + alpha * moved
    return total / len(labels)


@pytest.mark.parametrize("name", ["SOFTMAX", "SEESAW"])
def test_equals_slow_formula(name):
    """Seesaw's value differs by a constant of the factors, which has no gradient."""
    loss, state = regularized("PCB", name), {}
    for i in range(3):
        labels = torch.cat([torch.arange(9), random_labels(12, 9, seed=i)])
        logits = random_logits(21, loss.num_logits, seed=i)
        value, gradient = step(loss, logits, labels)
        leaf = logits.clone().requires_grad_()
        expected = slow(loss, state, leaf, labels.tolist())
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaf)[0], rtol=1e-5, atol=1e-8)
        if name == "SOFTMAX":
            torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=0)


def test_without_background():
    loss = make_loss("SOFTMAX", background=False)
    add_regularizer(loss, "PCB", {})
    value, gradient = step(loss, random_logits(9, 9), torch.arange(9))
    assert value > 0
    torch.testing.assert_close(gradient.sum(1), torch.zeros(9, dtype=torch.float64))


def test_the_last_pass_counts_as_the_step():
    loss = regularized("PCB", start=1)
    plain = make_loss("SOFTMAX")
    logits, labels = random_logits(9, 10), torch.arange(9)
    for progress, active in [(0.0, False), (0.5, False), (1.0, False), (0.0, False), (0.5, True), (1.0, True)]:
        loss.regularizer.progress = progress
        assert (step(loss, logits, labels)[0] != step(plain, logits, labels)[0]) == active, progress
    assert loss.regularizer.num_steps == 2


def test_a_class_without_a_region_keeps_the_gate_shut():
    loss = regularized("PCB")
    logits = random_logits(8, 10)
    assert torch.equal(step(loss, logits, torch.arange(8))[0], step(make_loss("SOFTMAX"), logits, torch.arange(8))[0])


@pytest.mark.parametrize(
    "loss, settings, word",
    [
        ("SOFTMAX", {"alpha": 1.5}, "PCB.ALPHA is 1.5"),
        ("SOFTMAX", {"momentum": 1.0}, "PCB.MOMENTUM is 1.0"),
        ("EQL_V2", {}, "LOSS 'EQL_V2' is no such cross-entropy"),
        ("LDAM", {}, "LOSS 'LDAM' is no such"),
    ],
)
def test_bad_settings(loss, settings, word):
    with pytest.raises(InputError, match=word):
        regularized("PCB", loss, **settings)
