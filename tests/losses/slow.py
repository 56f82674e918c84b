"""Every loss once more, as its formula reads: Python loops over regions and classes, gradients by autograd.

A slow loss takes the fast one (for settings, counts and the random draws of the step), a dict that it keeps its own
state in, float64 logits, labels as a list and the image-level sets. Where the state follows from the gradient, it puts
an ``update`` function into the dict.
"""

import math

import torch
import torch.nn.functional as F

from eql_d2.losses.functional import random_mask


def log_sigmoid(z):
    return F.logsigmoid(z)


def binary(z, target):
    """Binary cross-entropy of one logit."""
    return -log_sigmoid(z) if target else -log_sigmoid(-z)


def softmax_entropy(row, target, factor=None):
    """-log of the softmax of one row, with a factor on each exponential."""
    factor = factor or [1.0] * len(row)
    kept = [z + math.log(f) for z, f in zip(row, factor) if f > 0]
    return torch.logsumexp(torch.stack(kept), 0) - row[target] - math.log(factor[target])


def softmax(loss, state, logits, labels, verified):
    return sum(softmax_entropy(logits[r], y) for r, y in enumerate(labels)) / len(labels)


def sigmoid(loss, state, logits, labels, verified):
    total = 0
    for r, y in enumerate(labels):
        for j in range(loss.num_classes):
            total = total + binary(logits[r, j], j == y)
    return total / len(labels)


def eql(loss, state, logits, labels, verified):
    frequency, num_classes, total = counts_of(loss), loss.num_classes, 0
    for r, y in enumerate(labels):
        for j in range(num_classes):
            tail = frequency.image_count[j].item() / frequency.num_images < loss.lambda_
            foreground = y < num_classes if loss.exclude_background else True
            weight = 0 if foreground and tail and j != y else 1
            if verified is not None and verified[r, j] and loss.image_level_exemption:
                weight = 1
            total = total + weight * binary(logits[r, j], j == y)
    return total / len(labels)


def counts_of(loss):
    from tests.losses.helpers import long_tailed_frequency

    return long_tailed_frequency(loss.num_classes)


def collect(state, num_classes, scale=1.0):
    """Let ``state`` add up absolute gradients, times ``scale``, over positive and negative regions."""
    state.setdefault("pos_grad", [0.0] * num_classes)
    state.setdefault("neg_grad", [0.0] * num_classes)

    def update(gradient, labels):
        for row, y in zip(gradient, labels):
            for j in range(num_classes):
                state["pos_grad" if j == y else "neg_grad"][j] += scale * abs(row[j])

    state["update"] = update


def eql_v2(loss, state, logits, labels, verified):
    num_classes, started, total = loss.num_classes, "update" in state, 0
    collect(state, num_classes, scale=len(labels))
    for r, y in enumerate(labels):
        for j in range(loss.num_logits):
            positive, negative = 1.0, 1.0
            if j < num_classes:
                g = state["pos_grad"][j] / (state["neg_grad"][j] + 1e-10) if started else 100.0
                mapped = 1 / (1 + math.exp(-loss.gamma * (g - loss.mu)))
                negative = mapped if loss.reweight_negatives else 1.0
                positive = 1 + loss.alpha * (1 - mapped)
            total = total + (positive if j == y else negative) * binary(logits[r, j], j == y)
    return total / len(labels)


def focal_sum(logits, labels, num_classes, gamma, alpha, weight):
    total = 0
    for r, y in enumerate(labels):
        for j in range(num_classes):
            z = logits[r, j] if j == y else -logits[r, j]
            share = alpha if j == y else 1 - alpha
            total = total - weight[j] * share * (1 - torch.sigmoid(z)) ** gamma[j] * log_sigmoid(z)
    return total / max(sum(y < num_classes for y in labels), 1)


def focal(loss, state, logits, labels, verified):
    num_classes = loss.num_classes
    if loss.form == "bags":  # background is a class like the others, so that all regions are divided by
        columns = num_classes + 1
        return focal_sum(logits, labels, columns, [loss.gamma] * columns, loss.alpha, [1.0] * columns) / columns
    return focal_sum(logits, labels, num_classes, [loss.gamma] * num_classes, loss.alpha, [1.0] * num_classes)


def efl(loss, state, logits, labels, verified):
    num_classes, started = loss.num_classes, "update" in state
    collect(state, num_classes)
    gamma = []
    for positive, negative in zip(state["pos_grad"], state["neg_grad"]):
        g = min(positive / (negative + 1e-10), 1.0) if started else 1.0
        gamma.append(loss.gamma_b + loss.scale * (1 - g))
    return focal_sum(logits, labels, num_classes, gamma, loss.alpha, [g / loss.gamma_b for g in gamma])


def eqfl(loss, state, logits, labels, verified):
    num_classes, started = loss.num_classes, "update" in state
    quality = state.get("quality", [1.0] * len(labels))
    collect(state, num_classes)
    total = 0
    for j, (positive, negative) in enumerate(zip(state["pos_grad"], state["neg_grad"])):
        g = min(positive / (negative + 1e-10), 1.0) if started else 1.0
        gamma = loss.gamma_b + loss.scale * (1 - g)
        for r, y in enumerate(labels):
            target = quality[r] if j == y else 0.0
            p = torch.sigmoid(logits[r, j])
            entropy = -target * log_sigmoid(logits[r, j]) - (1 - target) * log_sigmoid(-logits[r, j])
            total = total + gamma / loss.gamma_b * (p - target).abs() ** gamma * entropy
    return total / max(sum(y < num_classes for y in labels), 1)


def softmax_eql(loss, state, logits, labels, verified):
    num_classes = loss.num_classes
    collect(state, num_classes)
    gradient = state["pos_grad"]
    if loss.form == "v1":
        gradient = [max(g, 1e-4) for g in gradient]
        factor = [g**loss.pi for g in gradient] + [(sum(gradient) / num_classes) ** loss.pi]
    else:
        share = [g / (sum(gradient) + 1e-4) for g in gradient]
        factor = [s**loss.pi + 1e-9 for s in (*share, sum(share) / num_classes)]
    factor = factor[: loss.num_logits]
    return sum(softmax_entropy(logits[r], y, factor) for r, y in enumerate(labels)) / len(labels)


def balanced_softmax(loss, state, logits, labels, verified):
    counts = [max(n, 1) for n in counts_of(loss).instance_count.tolist()]
    factor = [n**loss.tau for n in counts] + [(sum(counts) / len(counts)) ** loss.tau]
    factor = factor[: loss.num_logits]
    return sum(softmax_entropy(logits[r], y, factor) for r, y in enumerate(labels)) / len(labels)


def seql(loss, state, logits, labels, verified):
    frequency, num_classes, total = counts_of(loss), loss.num_classes, 0
    beta = random_mask(*logits.shape, loss.gamma, logits, loss.next_generator(logits.device))
    for r, y in enumerate(labels):
        factor = []
        for k in range(loss.num_logits):
            tail = k < num_classes and frequency.image_count[k].item() / frequency.num_images < loss.lambda_
            applies = y < num_classes or not loss.exclude_background
            factor.append(1 - beta[r, k].item() * tail * (k != y) * applies)
        total = total + softmax_entropy(logits[r], y, factor)
    return total / len(labels)


def droploss(loss, state, logits, labels, verified):
    frequency, num_classes, total = counts_of(loss), loss.num_classes, 0
    tail = [n / frequency.num_images < loss.lambda_ for n in frequency.image_count.tolist()]
    foreground = [tail[y] for y in labels if y < num_classes]
    ratio = sum(foreground) / len(foreground) if foreground else 1.0
    kept = random_mask(*logits.shape, ratio, logits, loss.next_generator(logits.device))
    for r, y in enumerate(labels):
        for j in range(num_classes):
            weight = 1.0
            if tail[j] and j != y:
                weight = kept[r, j].item() if y == num_classes else 0.0
            total = total + weight * binary(logits[r, j], j == y)
    return total / len(labels)


def federated(loss, state, logits, labels, verified):
    classes, total = loss.sample_classes(torch.tensor(labels)), 0
    for r, y in enumerate(labels):
        for j in range(loss.num_classes):
            if classes[j]:
                total = total + binary(logits[r, j], j == y)
    return total / len(labels)


def acsl(loss, state, logits, labels, verified):
    num_classes, total = loss.num_classes, 0
    groups = counts_of(loss).groups
    if loss.sample_background:
        sampled = loss.sampled_background(torch.tensor(labels))
    for r, y in enumerate(labels):
        for j in range(num_classes + 1):
            if j == y:
                weight = 1.0
            elif y == num_classes and loss.sample_background:
                weight = float(sampled["rcf".index(groups[j]), r])
            else:
                weight = float(torch.sigmoid(logits[r, j]) >= loss.xi)
            total = total + weight * binary(logits[r, j], j == y)
    return total / len(labels)


def bags(loss, state, logits, labels, verified):
    num_classes, total = loss.num_classes, 0
    group_of = [sum(n >= b for b in loss.group_bounds) for n in counts_of(loss).instance_count.tolist()]
    kept = loss.kept_regions(torch.tensor(labels))
    for n, group in enumerate(sorted(set(group_of))):
        members = [j for j in range(num_classes) if group_of[j] == group]
        columns = [*members, num_classes + n]
        regions = [r for r in range(len(labels)) if kept[n, r]]
        for r in regions:
            target = members.index(labels[r]) if labels[r] in members else len(members)
            total = total + softmax_entropy(logits[r, columns], target) / len(regions)
    for r, y in enumerate(labels):
        total = total + softmax_entropy(logits[r, -2:], int(y == num_classes)) / len(labels)
    return total


def reweighted(raw, loss, logits, labels):
    mean = sum(raw) / len(raw)
    weight = [min(max(w / mean, loss.min_weight), loss.max_weight) for w in raw] + [1.0]
    return sum(weight[y] * softmax_entropy(logits[r], y) for r, y in enumerate(labels)) / len(labels)


def class_balanced(loss, state, logits, labels, verified):
    counts = counts_of(loss).instance_count.tolist()
    return reweighted([(1 - loss.beta) / (1 - loss.beta**n) for n in counts], loss, logits, labels)


def inverse_frequency(loss, state, logits, labels, verified):
    counts = counts_of(loss).instance_count.tolist()
    return reweighted([n**-loss.power for n in counts], loss, logits, labels)


def seesaw(loss, state, logits, labels, verified):
    num_classes, total = loss.num_classes, 0
    seen = state.setdefault("seen", [0] * num_classes)
    for y in labels:
        if y < num_classes:
            seen[y] += 1
    for r, y in enumerate(labels):
        if loss.background:
            total = total + softmax_entropy(logits[r, -2:], int(y == num_classes))
        if y == num_classes:
            continue
        p = torch.softmax(logits[r, :num_classes].detach(), 0).tolist()
        factor = []
        for j in range(num_classes):
            mitigation = min(1.0, max(seen[j], 1) / max(seen[y], 1)) ** loss.p
            compensation = max(1.0, p[j] / max(p[y], loss.eps)) ** loss.q
            factor.append(1.0 if j == y else mitigation * compensation)
        total = total + softmax_entropy(logits[r, :num_classes], y, factor)
    return total / len(labels)


def ecm(loss, state, logits, labels, verified):
    counts = counts_of(loss).image_count.tolist()
    counts = [*counts, loss.background_ratio * sum(counts)]
    total = 0
    for r, y in enumerate(labels):
        for j, n in enumerate(counts):
            m = sum(counts) - n
            a = -math.log(m**0.25 / (n**0.25 + m**0.25))
            b = -math.log(n**0.25 / (n**0.25 + m**0.25))
            z = logits[r, j]
            # log(e^{z+a} / (e^{z+a} + e^{-z+b})) and its complement.
            chosen = z + a if j == y else -z + b
            weight = m / n * math.log(1 + n / m)
            total = total + weight * (torch.logaddexp(z + a, -z + b) - chosen)
    return total / len(labels)


def gumbel(z, target, weight=1.0):
    """Cross-entropy of one logit with the Gumbel distribution."""
    probability = torch.exp(-torch.exp(-z.clamp(-4, 10)))
    return -torch.log(probability) if target else -weight * torch.log1p(-probability)


def gol(loss, state, logits, labels, verified):
    num_classes, total = loss.num_classes, 0
    if loss.weights == "none":
        for r, y in enumerate(labels):
            total = total + sum(gumbel(logits[r, j], j == y) for j in range(num_classes + 1))
        return (total / len(labels)).clamp(max=20)
    frequency = counts_of(loss)
    tail = [n / frequency.num_images < loss.lambda_ for n in frequency.image_count.tolist()]
    foreground = [y for y in labels if y < num_classes]
    share = sum(tail[y] for y in foreground) / len(foreground) if foreground else 1.0
    share = share if loss.weights == "droploss" else 1.0
    kept = random_mask(len(labels), num_classes, share, logits, loss.next_generator(logits.device))
    for r, y in enumerate(labels):
        for j in range(num_classes):
            weight = 1.0 if not tail[j] else float(y == num_classes and kept[r, j] > 0)
            total = total + gumbel(logits[r, j], j == y, weight)
    return total / len(labels)


def iif(loss, state, logits, labels, verified):
    frequency, total = counts_of(loss), 0
    factor = [math.log(frequency.num_images / n) for n in frequency.image_count.tolist()] + [1.0]
    for r, y in enumerate(labels):
        total = total + softmax_entropy([z * f for z, f in zip(logits[r], factor)], y)
    return total / len(labels)


def ldam(loss, state, logits, labels, verified):
    """The mean of the regions weighed by their class; the loss counts its steps."""
    counts = counts_of(loss).instance_count.tolist()
    margin = [loss.max_margin * (min(counts) / n) ** 0.25 for n in counts] + [0.0]
    weight = [(1 - loss.beta) / (1 - loss.beta**n) for n in counts]
    weight = [w * len(counts) / sum(weight) for w in weight] + [1.0]
    if not 0 <= loss.reweight_after <= int(loss.num_steps):
        weight = [1.0] * len(weight)
    total, divisor = 0, 0
    for r, y in enumerate(labels):
        shifted = [loss.scale * (z - margin[y] * (j == y)) for j, z in enumerate(logits[r])]
        total = total + weight[y] * softmax_entropy(shifted, y)
        divisor += weight[y]
    return total / divisor


def loce(loss, state, logits, labels, verified):
    """Each region is an object; the state is that of the loss before the step, and one observation after another."""
    num_classes, mean_score = loss.num_classes, loss.mean_score.tolist()
    observed = {}
    for r, y in enumerate(labels):
        if y < num_classes:
            observed.setdefault(y, []).append(float(torch.softmax(logits[r].detach(), 0)[y]))
    for y, scores in observed.items():
        mean = sum(scores) / len(scores)
        for _ in scores:
            mean_score[y] = loss.alpha * mean_score[y] + (1 - loss.alpha) * mean
    factor = [*mean_score, loss.background_score][: loss.num_logits]
    return sum(softmax_entropy(logits[r], y, factor) for r, y in enumerate(labels)) / len(labels)


SLOW_LOSSES = {
    "SOFTMAX": softmax,
    "SIGMOID": sigmoid,
    "EQL": eql,
    "EQL_V2": eql_v2,
    "SOFTMAX_EQL": softmax_eql,
    "SEQL": seql,
    "ACSL": acsl,
    "BAGS": bags,
    "EFL": efl,
    "EQFL": eqfl,
    "CLASS_BALANCED": class_balanced,
    "INVERSE_FREQUENCY": inverse_frequency,
    "FOCAL": focal,
    "SEESAW": seesaw,
    "FEDERATED": federated,
    "DROPLOSS": droploss,
    "BALANCED_SOFTMAX": balanced_softmax,
    "ECM": ecm,
    "GOL": gol,
    "IIF": iif,
    "LDAM": ldam,
    "LOCE": loce,
}
