"""The report's numbers of image classifiers."""

from types import SimpleNamespace

from eql_d2.visualization.tables import headline, result_tables


def run(name, top1, ece):
    metrics = {"top1": top1, "top5": 70.0, "Many": 60.0, "Medium": None, "Few": 5.0, "balanced": top1, "ECE": ece}
    return SimpleNamespace(name=name, results={"cifar100_test": {"classification": metrics}})


RUNS = [run("softmax", 41.0, 9.0), run("seql", 43.0, 12.0)]


def test_headline():
    words = "accuracy top1 41.00, top5 70.00, Many 60.00, Medium n/a, Few 5.00, on cifar100_test."
    assert headline(RUNS)[0] == {"name": "softmax", "words": words}
    assert len(headline(RUNS)) == 2


def test_table_has_every_metric_and_the_smallest_calibration_error_is_best():
    table = str(result_tables(RUNS))
    assert "Accuracy on cifar100_test, in percent" in table
    for name in ("top1", "top5", "Many", "Medium", "Few", "balanced", "ECE"):
        assert name in table
    assert "<strong>43.00</strong>" in table
    assert "<strong>9.00</strong>" in table
    assert "<strong>12.00</strong>" not in table
