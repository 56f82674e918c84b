"""The method pages and MODEL_ZOO.md agree with the code: losses, settings with their defaults, configs, tables."""

import re
import subprocess
import sys

import pytest
import yaml

from eql_d2.cli import COMMANDS
from eql_d2.config import get_cfg, load_config
from eql_d2.errors import InputError
from eql_d2.experiments import references
from eql_d2.losses import CALIBRATION_REGISTRY, CLASSIFIER_LOSS_REGISTRY, REGULARIZER_REGISTRY
from tests.conftest import CONFIGS, ROOT

METHODS = ROOT / "docs" / "methods"
PAGES = sorted(path for path in METHODS.glob("*.md") if path.name != "README.md")
LOSSES = sorted(name for name, _ in CLASSIFIER_LOSS_REGISTRY)
CALIBRATIONS = sorted(name for name, _ in CALIBRATION_REGISTRY)
REGULARIZERS = sorted(name for name, _ in REGULARIZER_REGISTRY)
PROTOCOLS = ("crt", "lws", "tau_norm")
#: Pages whose keys are not in a node of the page's own name.
KEYS = {
    **{name.lower(): [f"{name}.{key}" for key in get_cfg().MODEL.LONG_TAIL[name]] for name in LOSSES},
    **{
        name.lower(): [f"{node}.NAME"] + [f"{node}.{name}.{key}" for key in get_cfg().MODEL.LONG_TAIL[node][name]]
        for node, names in (("CALIBRATION", CALIBRATIONS), ("REGULARIZER", REGULARIZERS))
        for name in names
    },
    "loce": [f"{node}.{key}" for node in ("LOCE", "FEATURE_MEMORY") for key in get_cfg().MODEL.LONG_TAIL[node]],
    "pcb": ["REGULARIZER.NAME"]
    + [f"REGULARIZER.PCB.{key}" for key in get_cfg().MODEL.LONG_TAIL.REGULARIZER.PCB]
    + [f"REFINEMENT.{key}" for key in get_cfg().MODEL.LONG_TAIL.REFINEMENT],
    "crt": ["TRAINABLE", "INIT_CLASSIFIER"],
    "lws": ["TRAINABLE", "INIT_CLASSIFIER", "LWS.SCALE_BIAS"],
    "tau_norm": ["TAU_NORM.TAU"],
    "README": [
        "TRAINABLE",
        "FEATURE_CACHE",
        "INIT_CLASSIFIER",
        "CLASSIFIER",
        "MASK_PREDICTOR",
        "REPEAT_ROUNDING",
        "REPEAT_TAIL_RATIO",
    ]
    + ["REPEAT_FREQUENCY", "REPEAT_EXPONENT"]
    + [f"{node}.{key}" for node in ("NORMED", "CASCADE") for key in get_cfg().MODEL.LONG_TAIL[node]],
}
HEADINGS = ["## Formula", "## Settings", "## Paper, authors' code", "## Configs", "## Published numbers"]
#: Nodes whose keys docs/training.md states.
TRAINING = ("AUGMENT", "BEST", "EMA", "ACCUMULATE", "OPTIMIZER", "VIT")


def default_of(key: str):
    value = get_cfg().MODEL.LONG_TAIL
    for part in key.split("."):
        value = value[part]
    return value


def test_every_method_has_a_page_and_every_page_a_method():
    methods = {name.lower() for name in LOSSES + CALIBRATIONS + REGULARIZERS} | set(PROTOCOLS)
    assert {path.stem for path in PAGES} == methods
    index = (METHODS / "README.md").read_text()
    assert all(f"[{method}]({method}.md)" in index for method in methods)


def stated_in(path):
    """Return the keys of a page's table, with the defaults that it states."""
    return dict(re.findall(r"^\| `([A-Z][A-Z_0-9.]+)` \| `(.*?)` \|", path.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("page", sorted(KEYS))
def test_pages_state_every_key_with_its_default(page):
    assert stated_in(METHODS / f"{page}.md") == {key: repr(default_of(key)) for key in KEYS[page]}


def test_the_training_page_states_every_key_with_its_default():
    expected = {f"{node}.{key}" for node in TRAINING for key in default_of(node)} | {"INIT_CLASSES", "WRITERS"}
    assert stated_in(ROOT / "docs" / "training.md") == {key: repr(default_of(key)) for key in expected}


def test_the_page_of_merged_data_states_every_key_with_its_default():
    expected = {f"IGNORED.{key}" for key in default_of("IGNORED")} | {"UNVERIFIED"}
    assert stated_in(ROOT / "docs" / "merged_data.md") == {key: repr(default_of(key)) for key in expected}


def test_the_page_of_segmentation_states_every_key_with_its_default():
    expected = {f"SEM_SEG.{key}" for key in default_of("SEM_SEG")}
    stated = stated_in(ROOT / "docs" / "segmentation.md")
    assert {key: stated.get(key) for key in expected} == {key: repr(default_of(key)) for key in expected}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pages_have_every_section(path):
    text = path.read_text()
    places = [text.find(f"\n{heading}") for heading in HEADINGS]
    assert -1 not in places and places == sorted(places)


def test_the_index_states_the_logits_and_what_each_loss_is():
    """The table's width of each loss is that of the loss; K = 3, and BAGS makes one group of them."""
    from eql_d2.data.frequency import CategoryFrequency

    index = (METHODS / "README.md").read_text()
    frequency = CategoryFrequency.from_counts([5, 4, 3], num_images=100)
    for name in LOSSES:
        (row,) = [line for line in index.splitlines() if f"| `{name}` |" in line]
        _, _, _, logits, counts, state, _, _ = (cell.strip() for cell in row.strip("|").split("|"))
        loss_class = CLASSIFIER_LOSS_REGISTRY.get(name)
        loss = loss_class(frequency)
        assert eval(logits, {"K": 3, "groups": 1}) == loss.num_logits, name
        assert (counts != "-") == loss_class.needs_frequency, name
        states = ("grad", "seen", "num_steps", "mean_score")
        assert (state != "-") == any(key.endswith(states) for key in loss.state_dict()), name


def documents():
    """All but CONTRIBUTING.md, which names files to be written; tests/test_contributing.py writes them."""
    pages = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md")), ROOT / "datasets" / "README.md"]
    return [path for path in pages if path.name != "CONTRIBUTING.md"]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_configs_and_links_of_the_method_pages_exist(path):
    text = path.read_text()
    given_here = re.findall(r"^```\w+ (\S+)$", text, re.MULTILINE)  # a file that the page itself has in full
    for name in re.findall(r"\bconfigs/[\w./-]+?\.yaml\b", text):
        assert name in given_here or (ROOT / name).is_file(), name
    if path.parent == METHODS:
        for link, anchor in re.findall(r"\]\(([\w./-]+\.md)(#[\w-]+)?\)", text):
            target = path.parent / link
            assert target.is_file(), link
            headings = [re.sub(r"\W+", "-", line.strip("# ").lower()) for line in target.read_text().splitlines()]
            assert not anchor or anchor[1:] in headings, link + anchor


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pages_list_every_config_of_their_method(path):
    """Each leaf in a folder of the method's name, and its mini leaf, is on the page."""
    text = path.read_text()
    leaves = [leaf for leaf in references.leaves() if leaf.parent.name == path.stem]
    for leaf in [*leaves, CONFIGS / "mini" / f"{path.stem}.yaml"]:
        assert f"`{leaf.relative_to(ROOT)}`" in text


def test_model_zoo_is_up_to_date_and_lists_every_config():
    content = (ROOT / "MODEL_ZOO.md").read_text()
    assert content == references.make_model_zoo(), "run: python tools/make_model_zoo.py"
    for path in references.leaves():
        assert f"]({path.relative_to(ROOT)}) |" in content


@pytest.mark.end_to_end
def test_the_tool_checks_the_model_zoo():
    subprocess.run([sys.executable, ROOT / "tools/make_model_zoo.py", "--check"], check=True)


def test_published_numbers_come_from_the_tables():
    tables = references.read_tables()
    row = {"framework": "Mask R-CNN", "backbone": "R-50-FPN", "EQL": "yes"}
    reference = {"table": "eql_table1", "row": row}
    assert references.published_number(tables, reference) == "mask 22.8 (11.3, 24.7, 25.1), box 23.3 [P1]"
    reference = {"table": "acsl_lvis", "row": {"model": "R-101-FPN baseline / ACSL"}, "part": 1}
    assert references.published_number(tables, reference) == "box 27.49 [R-ACSL], high"
    reference = {"table": "bags_lvis", "row": {"id": 20.0}}
    assert references.published_number(tables, reference) == "box 25.76, mask 26.25 [R-BAGS]"
    with pytest.raises(InputError, match="0 rows"):
        references.published_number(tables, {"table": "bags_lvis", "row": {"id": 99}})
    with pytest.raises(InputError, match="'eql_tabel1'"):
        references.published_number(tables, {"table": "eql_tabel1", "row": {}})


def test_no_row_of_a_table_is_claimed_by_two_configs():
    claims = []
    for entry in yaml.safe_load(references.ROWS_FILE.read_text()).values():
        claims += [str(reference) for key in ("paper", "repository") for reference in entry.get(key, ())]
    assert len(claims) == len(set(claims))


def readme_block(language: str) -> str:
    """Return the first fenced block of a language in README.md."""
    return re.search(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)


def test_the_readme_s_loss_runs():
    names = {}
    exec(readme_block("python"), names)
    assert names["logits"].grad.abs().sum() > 0 and names["scores"].shape == (512, 5)


def test_the_readme_s_config_loads(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mine.yaml").write_text(readme_block("yaml"))
    cfg = load_config(str(tmp_path / "mine.yaml"))
    assert cfg.DATASETS.TRAIN == ("mine_train",) and cfg.MODEL.LONG_TAIL.DATASETS[1][0] == "mine_val"
    assert cfg.MODEL.META_ARCHITECTURE == "LongTailRCNN" and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 37


def test_the_readme_s_commands_name_files_that_exist():
    pattern = r"(?:tools|demo|configs|datasets|docs|benchmarks)/[\w./-]+\.(?:py|yaml|md)"
    commands = re.findall(pattern, (ROOT / "README.md").read_text())
    assert len(commands) > 10
    assert [path for path in commands if not (ROOT / path).is_file()] == []


def test_the_documents_name_commands_that_exist():
    named = {name for path in documents() for name in re.findall(r"\beql-d2 ([a-z][a-z0-9-]+)", path.read_text())}
    assert len(named) > 10 and named <= set(COMMANDS), named - set(COMMANDS)
