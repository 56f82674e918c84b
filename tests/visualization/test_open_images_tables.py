"""The report's numbers of Open Images."""

from types import SimpleNamespace

from eql_d2.visualization.tables import category_tables, headline, result_tables

GROUPS = ("AP-1-rarest", "AP-2", "AP-3", "AP-4", "AP-5-most-frequent")


def run(name, ap):
    metrics = {"AP": ap, **dict(zip(GROUPS, (10.0, 20.0, 30.0, 40.0, None)))}
    category_ap = [{"id": 1, "name": "cat", "group": "f", "train_images": 200, "oid_AP": ap}]
    return SimpleNamespace(name=name, results={"oid_val": {"oid": metrics}}, category_ap=lambda dataset: category_ap)


RUNS = [run("sigmoid", 41.0), run("eql", 43.0)]


def test_headline_and_table_name_the_groups():
    values = "AP 41.00, AP-1-rarest 10.00, AP-2 20.00, AP-3 30.00, AP-4 40.00, AP-5-most-frequent n/a"
    assert headline(RUNS)[0] == {"name": "sigmoid", "words": f"Open Images AP {values}, on oid_val."}
    table = str(result_tables(RUNS))
    assert "Open Images AP on oid_val, in percent" in table
    assert all(f">{name}<" in table for name in GROUPS)
    assert "<strong>43.00</strong>" in table


def test_classes_are_listed_by_open_images_ap():
    listed = str(category_tables(RUNS, "oid_val"))
    assert "Open Images AP of each class on oid_val, in percent" in listed
    assert "43.00" in listed
