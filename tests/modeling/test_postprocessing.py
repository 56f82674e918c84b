"""Post-processing must return exactly what Detectron2's functions return: boxes, scores, classes, rows and order."""

import pytest
import torch
from detectron2.modeling.roi_heads import fast_rcnn as detectron2_fast_rcnn

from eql_d2.modeling.postprocessing import (
    CandidateSearch,
    class_wise_nms,
    fast_rcnn_inference,
    fast_rcnn_inference_single_image,
    lower_bound_of_kth,
    traced_inference,
)

IMAGE_SHAPE = (480, 640)


def random_predictions(seed, num_rows=100, num_classes=60, class_specific=False, distinct_scores=None):
    """Boxes around a few objects, partly outside the image, and scores with a peak for some of them.

    With ``distinct_scores`` the scores are rounded to that many values, so that most are tied.
    """
    generator = torch.Generator().manual_seed(seed)
    num_objects = 12
    corner = torch.rand(num_objects, 2, generator=generator) * torch.tensor([640.0, 480.0]) - 30
    objects = torch.cat([corner, corner + 20 + 150 * torch.rand(num_objects, 2, generator=generator)], dim=1)
    object_of = torch.randint(num_objects, (num_rows,), generator=generator)
    boxes_per_row = num_classes if class_specific else 1
    boxes = objects[object_of].repeat(1, boxes_per_row)
    boxes = boxes + 12 * torch.randn(boxes.shape, generator=generator)
    logits = torch.randn(num_rows, num_classes + 1, generator=generator) - 5
    label_of = torch.randint(num_classes, (num_objects,), generator=generator)
    logits[torch.arange(num_rows), label_of[object_of]] += 6 * torch.rand(num_rows, generator=generator)
    scores = logits.sigmoid()
    if distinct_scores:
        scores = (scores * distinct_scores).ceil() / distinct_scores
    return boxes, scores


def assert_same(ours, theirs):
    (instances, rows), (expected, expected_rows) = ours, theirs
    assert instances.image_size == expected.image_size
    assert list(instances.get_fields()) == list(expected.get_fields())
    assert torch.equal(instances.scores, expected.scores)
    assert torch.equal(instances.pred_classes, expected.pred_classes)
    assert torch.equal(instances.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(rows, expected_rows)
    for field in ("scores", "pred_classes"):
        assert getattr(instances, field).dtype == getattr(expected, field).dtype
    assert rows.dtype == expected_rows.dtype


def assert_equal_to_detectron2(boxes, scores, score_thresh=0.0, nms_thresh=0.5, topk=100):
    arguments = (IMAGE_SHAPE, score_thresh, nms_thresh, topk)
    ours = fast_rcnn_inference_single_image(boxes, scores, *arguments)
    assert_same(ours, detectron2_fast_rcnn.fast_rcnn_inference_single_image(boxes, scores, *arguments))
    return ours


@pytest.fixture
def stable_sort(monkeypatch):
    """Make torch's sort stable, so that Detectron2's result is defined where many scores are equal."""
    sort = torch.Tensor.sort

    def stable(tensor, dim=-1, descending=False, stable=True):
        return sort(tensor, dim=dim, descending=descending, stable=True)

    monkeypatch.setattr(torch.Tensor, "sort", stable)


@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("score_thresh", [0.0, 1e-4, 0.05])
@pytest.mark.parametrize("topk", [-1, 0, 1, 30, 100, 300])
def test_equal_to_detectron2_on_random_predictions(class_specific, score_thresh, topk):
    for seed in range(4):
        boxes, scores = random_predictions(seed, class_specific=class_specific)
        assert_equal_to_detectron2(boxes, scores, score_thresh, topk=topk)


@pytest.mark.parametrize("seed", range(25))
def test_equal_to_detectron2_on_random_sizes_and_thresholds(seed):
    generator = torch.Generator().manual_seed(seed)
    num_rows, num_classes, topk = (int(torch.randint(1, high, (1,), generator=generator)) for high in (160, 90, 120))
    nms_thresh, score_thresh = torch.rand(2, generator=generator).tolist()
    boxes, scores = random_predictions(seed, num_rows, num_classes, class_specific=seed % 2 == 1)
    assert_equal_to_detectron2(boxes, scores, score_thresh * 0.02, nms_thresh, topk)


@pytest.mark.parametrize(
    "num_rows, num_classes", [(1, 1), (1, 3000), (3000, 1), (2, 1500), (10, 100), (7, 143), (11, 91)]
)
def test_equal_to_detectron2_at_both_sides_of_the_limit_of_shifted_boxes(num_rows, num_classes):
    boxes, scores = random_predictions(5, num_rows, num_classes)
    assert_equal_to_detectron2(boxes, scores)


@pytest.mark.parametrize("num_distractors, num_kept", [(998, 1), (999, 2)])
def test_overlaps_are_rounded_as_in_detectron2(num_distractors, num_kept):
    """Two boxes of class 50 overlap by 0.50010, and by 0.50020 if they are shifted to 50 times the image's width."""
    boxes = torch.tensor([[0.0, 0.0, 9.3, 9.7], [0.0, 0.0, 9.3, 4.851]])
    # The distractors are boxes of class 0, apart from each other. Only their number differs.
    places = torch.arange(num_distractors, dtype=torch.float32)
    left, top = 20 + 10 * (places % 40), 20 + 10 * torch.div(places, 40, rounding_mode="floor")
    boxes = torch.cat([boxes, torch.stack([left, top, left + 5, top + 5], dim=1)])
    scores = torch.zeros(len(boxes), 61)
    scores[:2, 50] = torch.tensor([0.9, 0.8])
    scores[2:, 0] = torch.linspace(0.5, 0.1, num_distractors)
    instances, _ = assert_equal_to_detectron2(boxes, scores, nms_thresh=0.50015, topk=30)
    assert int((instances.pred_classes == 50).sum()) == num_kept


@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("distinct_scores", [1, 5, 100])
@pytest.mark.parametrize("topk", [-1, 20, 100])
def test_equal_scores_up_to_the_limit_come_in_detectron2s_order(class_specific, distinct_scores, topk):
    for seed in range(3):
        boxes, scores = random_predictions(seed, 25, 40, class_specific, distinct_scores)
        assert_equal_to_detectron2(boxes, scores, topk=topk)


@pytest.mark.parametrize("distinct_scores", [1, 5, 100])
def test_equal_scores_come_in_detectron2s_order_where_all_boxes_are_returned(distinct_scores):
    for seed in range(3):
        boxes, scores = random_predictions(seed, distinct_scores=distinct_scores)
        assert_equal_to_detectron2(boxes, scores, topk=-1)
        assert_equal_to_detectron2(boxes, scores, topk=len(scores) * scores.shape[1])


@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("distinct_scores", [1, 5, 100])
@pytest.mark.parametrize("topk", [20, 100, 300])
def test_equal_scores_come_in_the_order_of_a_stable_sort(stable_sort, class_specific, distinct_scores, topk):
    for seed in range(3):
        boxes, scores = random_predictions(seed, 100, 60, class_specific, distinct_scores)
        assert_equal_to_detectron2(boxes, scores, topk=topk)


def test_more_rounds_are_made_until_enough_survive(monkeypatch):
    """All regions show one object, so that hardly any of the best boxes survives."""
    boxes, scores = random_predictions(1, num_rows=200, num_classes=40)
    boxes = torch.tensor([50.0, 50.0, 150.0, 150.0]) + torch.rand(200, 4)
    scores[:, :3] = 0.5 + scores[:, :3] / 2
    counts = []
    best = CandidateSearch.best

    def counting_best(search, count):
        counts.append(count)
        return best(search, count)

    monkeypatch.setattr(CandidateSearch, "best", counting_best)
    instances, _ = assert_equal_to_detectron2(boxes, scores, topk=30)
    assert len(instances) == 30
    assert counts == [120, 480, 1920]
    counts.clear()
    instances, _ = assert_equal_to_detectron2(boxes, scores, topk=100)
    assert len(instances) == 40, "one survivor for each class, although 100 are wanted"
    assert counts[-1] == 200 * 40


@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("num_classes", [5, 60])
def test_rows_with_a_non_finite_value_are_left_out(class_specific, value, num_classes):
    boxes, scores = random_predictions(2, num_classes=num_classes, class_specific=class_specific)
    boxes[3, 1] = value
    scores[8, 2] = value
    scores[9, -1] = value
    instances, rows = assert_equal_to_detectron2(boxes, scores)
    assert len(instances) > 0
    assert int(rows.max()) < len(boxes) - 3
    boxes[:] = value
    instances, _ = assert_equal_to_detectron2(boxes, scores)
    assert len(instances) == 0


def test_huge_finite_values_are_kept_although_their_sum_overflows():
    boxes, scores = random_predictions(2)
    boxes[:, 2:] = 3e38
    assert torch.isinf(boxes.sum())
    instances, _ = assert_equal_to_detectron2(boxes, scores)
    assert len(instances) > 0


@pytest.mark.parametrize("class_specific", [False, True])
def test_no_region_and_no_score_above_the_threshold(class_specific):
    boxes, scores = random_predictions(0, class_specific=class_specific)
    for instances, rows in (
        assert_equal_to_detectron2(boxes[:0], scores[:0]),
        assert_equal_to_detectron2(boxes, scores, score_thresh=1.0),
    ):
        assert len(instances) == 0
        assert rows.shape == (0,)


def test_scores_at_the_threshold_are_left_out():
    boxes, scores = random_predictions(3, distinct_scores=20)
    value = float(scores[0, 0])
    instances, _ = assert_equal_to_detectron2(boxes, scores, score_thresh=value, topk=-1)
    assert (instances.scores > value).all()
    boxes, scores = random_predictions(3)
    scores[scores < 0.05] = 0.05
    # 0.05 is larger in float32 than in float64: a threshold compared in float64 would let all of these in.
    instances, _ = assert_equal_to_detectron2(boxes, scores, score_thresh=0.05, topk=10_000)
    assert len(instances) < 1000
    scores[:, ::2] += 0.01
    assert_equal_to_detectron2(boxes, scores, score_thresh=0.05, topk=10_000)


def test_averaged_scores_of_a_cascade():
    stages = [random_predictions(seed)[1].softmax(dim=1) for seed in range(3)]
    scores = sum(stages) * (1.0 / len(stages))
    boxes, _ = random_predictions(0)
    for topk in (-1, 50, 300):
        assert_equal_to_detectron2(boxes, scores, topk=topk)


def test_inputs_are_not_changed_and_need_not_be_contiguous():
    boxes, scores = random_predictions(4)
    wide = torch.cat([scores, scores], dim=1)[:, : scores.shape[1]]
    turned = boxes.t().contiguous().t()
    copies = boxes.clone(), scores.clone()
    assert_equal_to_detectron2(turned, wide)
    assert_equal_to_detectron2(boxes, scores)
    assert torch.equal(boxes, copies[0])
    assert torch.equal(scores, copies[1])


def test_several_images():
    predictions = [random_predictions(0), random_predictions(1, 5), random_predictions(2, 0)]
    boxes, scores = [list(values) for values in zip(*predictions)]
    shapes = [IMAGE_SHAPE, (300, 200), (10, 10)]
    ours = fast_rcnn_inference(boxes, scores, shapes, 0.0, 0.5, 100)
    theirs = detectron2_fast_rcnn.fast_rcnn_inference(boxes, scores, shapes, 0.0, 0.5, 100)
    for image in range(3):
        assert_same((ours[0][image], ours[1][image]), (theirs[0][image], theirs[1][image]))


@pytest.mark.parametrize("count", [1, 7, 99, 100, 101, 5999, 6000])
def test_lower_bound_is_reached_by_enough_scores(count):
    _, scores = random_predictions(6)
    scores = scores[:, :-1]
    bound = lower_bound_of_kth(scores, count)
    assert count <= int((scores >= bound).sum())
    if count == scores.numel():
        assert bound == scores.min()


def test_best_takes_the_earlier_of_equal_scores():
    boxes, scores = random_predictions(7, distinct_scores=3)
    search = CandidateSearch(boxes, scores, IMAGE_SHAPE, 0.0)
    candidates = search.best(1234)
    flat = scores[:, :-1].flatten()
    expected = flat.argsort(descending=True, stable=True)[:1234].sort()[0]
    assert torch.equal(candidates.rows * (scores.shape[1] - 1) + candidates.classes, expected)
    assert torch.equal(candidates.scores, flat[expected])


def test_class_wise_nms_of_separate_classes_keeps_all():
    boxes, scores = random_predictions(8, num_rows=1, num_classes=30)
    candidates = CandidateSearch(boxes, scores, IMAGE_SHAPE, 0.0).best(30)
    assert torch.equal(class_wise_nms(candidates, 0.5), torch.arange(30))


@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("num_classes, topk, threshold", [(60, 100, 0.05), (1230, 300, 0.0), (1, 5, 0.0), (7, -1, 0.1)])
def test_one_round_in_a_trace_gives_the_same(num_classes, topk, threshold, class_specific):
    """Boxes and scores are those of the rounds; a class's boxes are shifted, which rounds their overlaps alone."""
    boxes, scores = random_predictions(9, num_classes=num_classes, class_specific=class_specific)
    arguments = (IMAGE_SHAPE, threshold, 0.5, topk)
    assert_same(
        traced_inference(boxes, scores, *arguments), fast_rcnn_inference_single_image(boxes, scores, *arguments)
    )


def test_a_trace_takes_the_one_round():
    """Traced with boxes of which some are above the threshold, and given some of which none is."""

    def infer(boxes, scores):
        instances, rows = fast_rcnn_inference_single_image(boxes, scores, IMAGE_SHAPE, 0.5, 0.5, 20)
        return instances.pred_boxes.tensor, instances.scores, instances.pred_classes, rows

    traced = torch.jit.trace(infer, random_predictions(9), check_trace=False)
    for seed, factor in ((10, 1.0), (11, 0.9), (12, 0.0)):
        boxes, scores = random_predictions(seed, num_rows=80)
        for found, expected in zip(traced(boxes, scores * factor), infer(boxes, scores * factor)):
            assert torch.equal(found, expected)
