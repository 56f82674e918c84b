"""Table specifications: every one of the repository, and what is said of wrong ones."""

import pytest
import yaml

from eql_d2.config import load_config
from eql_d2.errors import InputError
from eql_d2.experiments import spec
from eql_d2.experiments.comparison import published_value
from eql_d2.experiments.references import read_tables
from eql_d2.experiments.spec import load_specification, table_names

ROW = {"name": "a", "config": "tiny"}


@pytest.mark.parametrize("name", table_names())
def test_specification_of_the_repository(name):
    table = load_specification(name)
    for row in [*table.rows, *table.prepare.values()]:
        if row.config is not None:
            load_config(str(row.config), row.opts)
        assert not row.not_expressible or row.not_expressible.endswith("."), row.name
        for reference in row.published.values():
            values = [published_value(read_tables(), reference, metric) for metric in table.metrics]
            assert any(values), f"{row.name}: {reference} gives none of {table.metrics}"


def test_the_papers_tables_are_all_there():
    assert {"eql_table1", "eql_table2", "eql_table3", "eql_table4", "eql_table5", "eql_repository"} <= set(
        table_names()
    )
    assert {"acsl", "bags", "eql_v2"} <= set(table_names())
    assert {"mini_methods", *(f"mini_eql_table{i}" for i in range(1, 6))} <= set(table_names())


def test_every_published_row_of_an_eql_table_is_in_its_specification():
    for name in ("eql_table1", "eql_table2", "eql_table3", "eql_table4", "eql_table5"):
        rows = read_tables()[name]["rows"]
        printed = {published_value(read_tables(), row.published["paper"], "segm/AP") + "/" +
                   published_value(read_tables(), row.published["paper"], "segm/APr")
                   for row in load_specification(name).rows if "paper" in row.published}  # fmt: skip
        assert {f"{row['AP']}/{row['APr']}" for row in rows} <= printed


def test_the_two_stage_tables_train_both_stages():
    for name in ("acsl", "bags"):
        table = load_specification(name)
        second = [row for row in table.rows if row.start]
        assert second and all(not table.find(row.start).start for row in second)


def test_base_is_merged(place, write_table):
    base = {"title": "Base", "dataset": "Base", "seeds": [1, 2], "opts": ["A", 1], "caveats": ["x"], "metrics": ["a/b"]}
    base["prepare"] = {"first": {"config": "tiny"}}
    (place / "tables" / "Base-x.yaml").write_text(yaml.safe_dump(base))
    rows = [{**ROW, "opts": ["B", 2], "start": "first"}]
    child = {"_BASE_": "Base-x.yaml", "title": "Child", "opts": ["C", 3], "caveats": ["y"], "rows": rows}
    (place / "tables" / "child.yaml").write_text(yaml.safe_dump(child))
    table = load_specification("child", place / "tables")
    assert (table.title, table.dataset, table.caveats) == ("Child", "Base", ("x", "y"))
    assert table.rows[0].opts == ("A", "1", "C", "3", "B", "2") and table.rows[0].seeds == (1, 2)
    # What is prepared is one training with settings of its own.
    assert table.prepare["first"].opts == () and table.prepare["first"].seeds == (0,)
    assert table_names(place / "tables") == ["child"]


@pytest.mark.parametrize(
    "rows, keys, message",
    [
        ([{"name": "a"}], {}, r"rows\[0\]: a row has either a config or the reason"),
        ([{"name": "a", "config": "missing"}], {}, "rows.*config is 'missing'.*does not exist"),
        ([{**ROW, "stat": "b"}], {}, r"rows\[0\].*unknown field `stat`. Did you mean start"),
        ([{**ROW, "start": "b"}], {}, "start of 'a' is 'b'; there are a"),
        ([{**ROW, "start": "a"}], {}, "a circle"),
        ([{**ROW, "start": "b"}, {**ROW, "name": "b", "seeds": [1]}], {}, "has the seed 0"),
        ([{**ROW, "action": "sing"}], {}, r"rows\[0\]: action is 'sing': Invalid.* There are train, evaluate"),
        ([{**ROW, "opts": ["A"]}], {}, "not pairs of KEY VALUE: A"),
        ([{**ROW, "seeds": [1, 1]}], {}, "seeds.*different whole numbers"),
        ([{**ROW, "seeds": [True]}], {}, r"seeds is \[True\]: Expected `int`, got `bool`"),
        ([{**ROW, "values": {"λ": 1}}], {}, "'λ', which is not in columns"),
        ([{**ROW, "twin": "LVISv0.5/nothing"}], {}, "twin is 'LVISv0.5/nothing'"),
        ([ROW, ROW], {}, "'a' stands for two rows"),
        (["a"], {}, "a row is a mapping"),
        ([ROW], {"baseline": "b"}, "baseline of 'a' is 'b'"),
        ([ROW], {"metrics": ["AP"]}, r"metrics is \['AP'\]: Expected `str` matching"),
        ([ROW], {"metric": ["segm/AP"]}, "unknown field `metric`. Did you mean metrics"),
        ([ROW], {"title": ""}, "title is ''"),
        ([ROW], {"published": ["table_99"]}, "'table_99', which paper_tables.yaml lacks"),
        ([{**ROW, "not_expressible": "No."}], {}, "either a config or the reason why it is not_expressible"),
        ([{"name": "a", "not_expressible": 1}], {}, r"rows\[0\]: not_expressible is 1: Expected `str`"),
        ([{"name": "b", "not_expressible": "No."}, {**ROW, "start": "b"}], {}, "'b', which is not expressible"),
        ([{**ROW, "published": {"paper": {"table": "bags_lvis", "row": {"id": 99}}}}], {}, "names no row: 0 rows"),
        ([{**ROW, "published": {"web": {}}}], {}, "published is .* value 'web'. There are paper, repository"),
        ([ROW], {"paper": "EQL v9"}, "paper is 'EQL v9': Invalid enum value 'EQL v9'. There are EQL, EQL v2"),
        ([ROW], {"small_copy": "mini"}, "small_copy is 'mini', which is no table beside it"),
    ],
)
def test_wrong_specification_names_file_and_field(write_table, rows, keys, message):
    with pytest.raises(InputError, match=message) as caught:
        write_table(rows, **keys)
    assert "tiny.yaml" in str(caught.value)


def test_what_is_published_of_a_row(write_table):
    """The row's own reference first; a config changed by the row's own opts is not the published one."""
    reference = {"table": "bags_lvis", "row": {"id": 14}}
    config = "LVISv0.5/eql/mask_rcnn_R_50_FPN_paper"
    spec.CONFIGS.joinpath(config).parent.mkdir(parents=True)
    spec.CONFIGS.joinpath(f"{config}.yaml").touch()
    rows = [
        {**ROW, "published": {"repository": reference}},
        {"name": "plain", "config": config},
        {"name": "changed", "config": config, "opts": ["A", 1]},
        {"name": "missing", "not_expressible": "No such head.", "published": {"repository": reference}},
    ]
    table = write_table(rows)
    own, plain, changed, missing = (row.published for row in table.rows)
    assert own == missing == {"repository": reference}
    assert plain["paper"]["table"] == "eql_table1" and changed == {}
    assert [row.name for row in table.runnable] == ["a", "plain", "changed"] and table.rows[3].config is None


def test_unknown_table_and_unreadable_file(place):
    with pytest.raises(InputError, match="Did you mean eql_table2"):
        load_specification("eql_tabel2")
    (place / "tables" / "broken.yaml").write_text("rows: [")
    with pytest.raises(InputError, match=r"broken\.yaml cannot be read as YAML"):
        load_specification("broken", place / "tables")
