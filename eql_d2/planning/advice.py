"""What to train on a data set, and why: each setting with its reason and what was measured.

The evidence is quoted from ``docs/results.md`` word for word; a test looks every sentence up.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from eql_d2.data.frequency import PROPER_RANGE, USUAL_TAIL_RATIO
from eql_d2.errors import InputError
from eql_d2.losses import default_settings
from eql_d2.planning.facts import SIZE_BOUNDS, DatasetFacts

#: Below this factor between the most and the least frequent class nothing is called a tail.
BALANCED = 3.0
#: Epochs of the papers' 1x schedule, those after which the learning rate falls, and the least number of iterations.
EPOCHS, STEPS, MIN_ITERATIONS = 12, (8, 11), 1000
BATCH = 4
#: Evaluations in the course of the training, and checkpoints.
EVALUATIONS = 5
#: The learning rate of 16 images (Goyal et al., arXiv 1706.02677: it goes with the batch).
BASE_LR, BASE_BATCH = 0.02, 16
#: EQL's own lambda, made for LVIS.
LVIS_LAMBDA = default_settings("EQL")["lambda_"]
#: LVIS's cap on the detections of an image.
CAP = 300
#: Shorter side of a training image: that of the images, at most the first; at most the second for small objects.
SIDES = (640, 800)
LONG_SIDE = 1333


@dataclass(frozen=True)
class Advice:
    """One recommendation.

    Attributes:
        about: what it decides.
        choice: in a few words.
        settings: keys of the config with their values.
        reason: why, from the data.
        evidence: sentences of docs/results.md.
    """

    about: str
    choice: str
    settings: Dict[str, Any]
    reason: str
    evidence: Sequence[str] = field(default_factory=tuple)


def advise(facts: DatasetFacts) -> List[Advice]:
    """Return what to train, in the order in which one decides it."""
    tail, lambda_ = _tail(facts)
    side = _side(facts)
    small = float(np.mean(facts.resized(side, LONG_SIDE) < SIZE_BOUNDS[0]))
    return [*tail, lambda_, _cap(facts), _schedule(facts), _image_size(facts, side), _anchors(small), _masks(facts)]


def best_of(metric: str, iterations: int) -> Advice:
    """Return the advice to keep the best weights by a metric, for a set with images to validate on."""
    return Advice(
        "checkpoint",
        f"the best of {EVALUATIONS} by {metric}, model_best.pth",
        {"TEST.EVAL_PERIOD": iterations // EVALUATIONS, "MODEL.LONG_TAIL.BEST.METRIC": metric},
        "A small set is learnt by heart before the last iteration. The best of several evaluations is too good an "
        "estimate on the images that chose it: report it on others.",
    )


def _tail(facts: DatasetFacts) -> Tuple[List[Advice], Advice]:
    """Return the method with its sampler, and the threshold of both."""
    frequency = facts.frequency
    try:
        threshold = frequency.lambda_of(USUAL_TAIL_RATIO)
    except InputError:
        threshold = 0.0
    if not threshold or facts.imbalance < BALANCED:
        reason = f"The most frequent class has {facts.imbalance:.1f} times the images of the rarest: no tail."
        method = Advice(
            "method", "SIGMOID", {"MODEL.LONG_TAIL.LOSS": "SIGMOID"}, reason,
            ("Softmax and sigmoid are equal under the cap and far apart without it",),
        )  # fmt: skip
        sampler = Advice("sampler", "every image as often", {"DATALOADER.SAMPLER_TRAIN": "TrainingSampler"}, reason)
        return [method, sampler], Advice("lambda", "none", {}, "Neither has a threshold.")
    method = Advice(
        "method",
        "EQL",
        {"MODEL.LONG_TAIL.LOSS": "EQL"},
        f"The most frequent class has {facts.imbalance:.0f} times the images of the rarest. EQL with repeat-factor "
        f"sampling was as good as the better of the two by both measures, in one stage."
        + " No image says which classes it does not show, so EQL spares tail classes everywhere."
        * (not facts.has_image_labels),
        (
            "EQL and repeat-factor sampling add up: 9.0, where each alone has 7.6.",
            "Box AP-fixed is 22.0 for sigmoid and 22.4 for EQL, 24.3 for repeat-factor sampling and 24.3 for EQL "
            "with it",
        ),
    )
    sampler = Advice(
        "sampler",
        "repeat-factor sampling",
        {
            "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
            "MODEL.LONG_TAIL.REPEAT_TAIL_RATIO": USUAL_TAIL_RATIO,
        },
        "It detects the tail better, not only ranks it higher, and still does after a long training, where class-aware "
        "sampling trades frequent classes for rare ones.",
        (
            "Box AP-fixed against sigmoid's: repeat-factor sampling +1.7*, EQL v2 +1.5* (+2.3* and +1.3* before), "
            "class-aware sampling +0.3 (+3.1* before), EQL -0.1.",
        ),
    )
    ratio, (low, high) = frequency.tail_ratio(threshold), PROPER_RANGE
    proper = (
        f"which is in the range of {100 * low:.0f} to {100 * high:.0f}% that EQL calls proper"
        if low <= ratio <= high
        else f"the nearest to 9% that the counts allow; EQL calls {100 * low:.0f} to {100 * high:.0f}% proper"
    )
    lambda_ = Advice(
        "lambda",
        f"{threshold:.4g}, by TAIL_RATIO {USUAL_TAIL_RATIO}",
        {"MODEL.LONG_TAIL.EQL.TAIL_RATIO": USUAL_TAIL_RATIO},
        f"{frequency.describe_tail(threshold)}, {proper}. It is chosen anew from the counts when the data changes; the "
        f"same ratio gives the threshold of repeat-factor sampling. (LVIS's own {LVIS_LAMBDA} takes "
        f"in {frequency.describe_tail(LVIS_LAMBDA).split('takes in ')[1]}.)",
        ("It rises until the tail holds the common classes and then falls",),
    )
    others = Advice(
        "to compare with",
        "EQL_V2, in one stage; BAGS or ACSL, in two",
        {},
        "EQL v2 needs no threshold: add MODEL.LONG_TAIL.LOSS EQL_V2. BAGS and ACSL train the classifier of a softmax "
        "detector anew (eql-d2 train-two-stage); they rank the detections of rare classes higher.",
        (
            "EQL v2 (8.2), BAGS (9.8) and ACSL (10.2) are above EQL, their gains in rare classes too",
            "EQL v2 +1.3*, cRT +1.2*. BAGS (+0.8), federated (+0.8), EQL (+0.3), DropLoss (-0.2) and ECM (-0.5) differ "
            "by less than three seeds support",
        ),
    )
    return [method, sampler, others], lambda_


def _cap(facts: DatasetFacts) -> Advice:
    most = int(facts.objects_of_image.max())
    cap = max(CAP, 100 * math.ceil(2 * most / 100))
    return Advice(
        "cap on detections",
        f"{cap} of an image, from a score of 0.0001 on",
        {"TEST.DETECTIONS_PER_IMAGE": cap, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001},
        f"An image shows up to {most} objects. The detections of rare classes score low: a cap or a threshold takes "
        f"them away first.",
        (
            "The rare detections of a sigmoid detector are well ordered among themselves but score too low to be among "
            "an image's first 15.",
        ),
    )


def _schedule(facts: DatasetFacts) -> Advice:
    num_images = len(facts.objects_of_image) - facts.without_annotations
    iterations = max(math.ceil(EPOCHS * num_images / BATCH), MIN_ITERATIONS)
    iterations = 100 * math.ceil(iterations / 100)
    epochs = iterations * BATCH / num_images
    steps = tuple(round(iterations * step / EPOCHS) for step in STEPS)
    rarest = facts.frequency.image_count
    seen = epochs * int(rarest[rarest > 0].min())
    return Advice(
        "schedule and batch",
        f"{iterations:,} iterations of {BATCH} images",
        {
            "SOLVER.IMS_PER_BATCH": BATCH,
            "SOLVER.BASE_LR": BASE_LR * BATCH / BASE_BATCH,
            "SOLVER.MAX_ITER": iterations,
            "SOLVER.STEPS": steps,
            "SOLVER.WARMUP_ITERS": min(500, iterations // 10),
            "SOLVER.CHECKPOINT_PERIOD": iterations // EVALUATIONS,
        },
        f"{epochs:.0f} passes over {num_images:,} images ({EPOCHS} are the papers' 1x, {MIN_ITERATIONS:,} iterations "
        f"the least): the rarest class is seen {seen:.0f} times, repeats not counted. {BATCH} images fit a small GPU; "
        f"the learning rate goes with the batch, {BASE_LR:g} for {BASE_BATCH}.",
        ("With four times the iterations, some of it lasts", "mask APr rises from 0.9 to 2.1*"),
    )


def _side(facts: DatasetFacts) -> int:
    typical = int(np.median(facts.image_sides[:, 0]))
    side = min(SIDES[0], max(32 * round(typical / 32), 64))
    if typical > side and np.median(facts.resized(side, LONG_SIDE)) < SIZE_BOUNDS[0]:
        side = min(SIDES[1], 32 * round(typical / 32))
    return side


def _image_size(facts: DatasetFacts, side: int) -> Advice:
    longer = min(LONG_SIDE, 2 * side)
    smaller = [max(side - step, 32) for step in (2 * side // 10, side // 10, 0)]
    median = float(np.median(facts.resized(side, longer)))
    return Advice(
        "image size",
        f"shorter side {side} pixels",
        {
            "INPUT.MIN_SIZE_TRAIN": tuple(smaller),
            "INPUT.MAX_SIZE_TRAIN": longer,
            "INPUT.MIN_SIZE_TEST": side,
            "INPUT.MAX_SIZE_TEST": longer,
        },
        f"The median image has {int(np.median(facts.image_sides[:, 0]))} x {int(np.median(facts.image_sides[:, 1]))} "
        f"pixels, the median object then {median:.0f}. Larger images cost more time; {SIDES[1]} is the papers' size.",
    )


def _anchors(small: float) -> Advice:
    first = 16 if small > 0.25 else 32
    return Advice(
        "anchors",
        f"from {first} pixels on",
        {"MODEL.ANCHOR_GENERATOR.SIZES": [[first * 2**level] for level in range(5)]},
        f"{100 * small:.0f}% of the objects are below {SIZE_BOUNDS[0]:.0f} pixels in the training images; from 25% on "
        f"the anchors start at half of Detectron2's size.",
    )


def _masks(facts: DatasetFacts) -> Advice:
    masks = facts.with_mask == 1
    return Advice(
        "masks",
        "predicted" if masks else "not predicted",
        {"MODEL.MASK_ON": masks},
        f"{100 * facts.with_mask:.0f}% of the objects have a mask; a mask head needs all.",
    )
