"""Knobs: declared once, understood as text; what notebooks, commands and docs make of them."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import nbformat
import pytest

from nofe_lab import Experiment, InvalidInput, notebook
from nofe_lab.__main__ import main
from nofe_lab.knobs import _DECLARED, KNOBS, understood
from nofe_lab.stages.experiment import OF_FILES

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

# --- values that come as text


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("with_gate", "false", False),
        ("with_gate", "no", False),
        ("with_gate", "0", False),
        ("with_gate", 0, False),
        ("with_gate", "True", True),
        ("flips", "true", True),
        ("flips", 1, True),
        ("flips", "None", None),
        ("K", "5", 5),
        ("K", " 5 ", 5),
        ("epochs", "null", None),
        ("learning_rate", "1e-2", 0.01),
        ("learning_rate", "0.1", 0.1),
        ("learning_rate", 1, 1.0),
        ("rule", "none", None),
        ("rule", "greedy", "greedy"),
        ("rules", "greedy, random", ["greedy", "random"]),
        ("rules", ["greedy", "random"], ["greedy", "random"]),
        ("rules", "['greedy', \"random\"]", ["greedy", "random"]),
        ("rules", "[greedy, random]", ["greedy", "random"]),
        ("rules", "None", []),
        ("rules", None, []),
        ("rules", "", []),
        ("Ks", [2, 4], [2, 4]),
        ("Ks", (2, "4"), [2, 4]),
        ("Ks", "2,4", [2, 4]),
        ("Ks", 4, [4]),
        ("updates", "", []),
        ("dataset", "glyphs:20", "glyphs:20"),
    ],
)
def test_text_is_understood_by_the_type_of_its_knob(name: str, given: Any, meant: Any) -> None:
    found = understood({name: given})[name]
    assert (found, type(found)) == (meant, type(meant))


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("flips", "perhaps", r"flips must be true or false; got 'perhaps'\."),
        ("with_gate", None, r"with_gate must be true or false; got None\."),
        ("with_gate", 2, r"with_gate must be true or false; got 2\."),
        ("K", "ten", r"K must be a whole number of at least 2; got 'ten'\."),
        ("K", "5.5", r"K must be a whole number of at least 2; got '5\.5'\."),
        ("seed", "None", r"seed must be a whole number of at least 0; got 'None'\."),
        ("learning_rate", "fast", r"learning_rate must be a number above 0; got 'fast'\."),
        ("learning_rate", "nan", r"learning_rate must be a number above 0; got nan\."),
        ("learning_rate", "-1e-3", r"learning_rate must be a number above 0; got -0\.001\."),
        ("rules", "greedy; random", r"rules 'greedy; random' is unknown.*; accepted: 'optimal'"),
        ("rules", "optimum", r"rules 'optimum' is unknown \(did you mean 'optimal'\?\)"),
        ("rules", 5, r"rules must be text; got 5\."),
        ("Ks", "2, five", r"Ks must be a whole number of at least 2; got 'five'\."),
        ("Ks", [2.5], r"Ks must be a whole number of at least 2; got 2\.5\."),
        ("results", 5, r"results must be text; got 5\."),
        ("dataset", 5, r"dataset must be text; got 5\."),
    ],
)
def test_what_cannot_be_understood_is_refused(name: str, given: Any, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        understood({name: given})


def test_a_file_to_be_written_is_tried_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for written in ("~/a/x.csv", "$HOME/a/x.csv", "${HOME}/a/x.csv"):
        assert understood({"results": written})["results"] == tmp_path / "a" / "x.csv"
    assert not list((tmp_path / "a").iterdir())
    (tmp_path / "kept.csv").write_text("old")
    assert understood({"results": "~/kept.csv"})
    assert (tmp_path / "kept.csv").read_text() == "old"
    with pytest.raises(InvalidInput, match=r"results '~/a' cannot be written \(it is a folder\)"):
        understood({"results": "~/a"})
    with pytest.raises(InvalidInput, match=r"results '~/kept\.csv/x' cannot be written \("):
        understood({"results": "~/kept.csv/x"})
    with pytest.raises(InvalidInput, match=r"names an environment variable that is not set"):
        understood({"results": "$NO_SUCH_FOLDER/x.csv"})
    with pytest.raises(InvalidInput, match=r"results '' cannot be written"):
        understood({"results": ""})


# --- one declaration


def test_no_two_knobs_have_one_name() -> None:
    names = [knob.name for knobs in _DECLARED.values() for knob in knobs]
    assert sorted(names) == sorted(set(names))


def test_every_default_is_accepted_by_its_own_knob() -> None:
    for name, knob in KNOBS.items():
        assert knob.name == name
        knob.parse(knob.default)
        assert knob.help
        assert len(knob.line) <= 100


def test_every_field_of_an_experiment_is_a_knob_with_its_default() -> None:
    own = {each.name: each.default for each in fields(Experiment) if each.init}
    assert own == {name: KNOBS[name].default for name in own}


OTHERS: dict[str, Any] = {
    "dataset": "glyphs:5",
    "backbone": "alexnet_c100",
    "K": 4,
    "rule": "greedy",
    "preset": "paper",
    "epochs": 2,
    "trunk_epochs": 2,
    "batch_size": 50,
    "learning_rate": 0.01,
    "trunk_rate": 0.5,
    "nofe_rate": 0.01,
    "overlap": 2,
    "sparse": 1,
    "teacher": "control",
    "seed": 1,
    "specialties": "random",
    "trunk": "scratch",
    "val_fraction": 0.5,
    "branch_width": 0.5,
    "flips": True,
    "train_per_class": 3,
    "data_seed": 1,
    "map_updates": 2,
    "affinity": "counts",
    "affinity_images": 100,
    "affinity_from": "training",
    "fine_head": True,
    "initialisation": "published",
}
ELSEWHERE: dict[str, dict[str, Any]] = {
    "split": {"backbone": "resnet18", "split": "layer3"},
    "stem": {"backbone": "resnet18", "stem": "original"},
    "branch_start": {"backbone": "resnet18", "branch_start": "tail"},
    "elastic_lambda": {"rule": "elastic", "elastic_lambda": 5.0},
}
"""Knobs that mean something only beside others."""


def test_every_knob_of_an_experiment_makes_another_run_unless_it_cannot() -> None:
    """A knob that is accepted and has no effect is worse than none."""

    def ids(**given: Any) -> set[str]:
        made = Experiment(**{"dataset": "glyphs:4", "epochs": 1, "device": "cpu", **given})
        return {stage.id for stage in (made.base(), made.generalist(), made.nofe())}

    idle = {"device", "precision", "ranks", "runs_dir", "checkpoint_seconds"}  # of the machine
    idle |= {"weights", "random_crops", *OF_FILES}  # of files: tested there
    known = {each.name for each in fields(Experiment) if each.init}
    assert known == {*OTHERS, *ELSEWHERE, *idle}
    usual = ids()
    for name, value in OTHERS.items():
        assert ids(**{name: value}) != usual, name
    for name, given in ELSEWHERE.items():
        without = {key: value for key, value in given.items() if key != name}
        assert ids(**given) != ids(**without), name


# --- from a notebook


OWN = "# Parameters: change them here\nK: int = 10  # of experts\nepochs: int = None\n"


def namespace(*cells: str, runs_dir: Path) -> dict[str, Any]:
    """What ``globals()`` holds after the cells, with IPython's list of them."""
    values: dict[str, Any] = {}
    cells = tuple(
        f"{cell}runs_dir = {str(runs_dir)!r}\n" if cell.startswith("# Parameters:") else cell
        for cell in cells
    )
    for cell in cells:
        exec(cell, values)
    return {**values, "In": ["", *cells]}


def test_a_notebook_s_parameters_make_its_experiment(runs_dir: Path) -> None:
    injected = "# Parameters\nK = 4\nepochs = 3\n"
    found = notebook.experiment(namespace(OWN, injected, "import os", runs_dir=runs_dir))
    assert found == Experiment(K=4, epochs=3, runs_dir=str(runs_dir))


@pytest.mark.parametrize("cell", ["epoch = 3\n", "epoch: int = 3\n", "K, epoch = 3, 3\n"])
def test_a_misspelt_parameter_is_refused_with_the_nearest_and_all_known(
    cell: str, runs_dir: Path
) -> None:
    sentence = r"'epoch' is unknown \(did you mean 'epochs'\?\); accepted: 'K', .* 'weights'\."
    for cells in [(OWN, f"# Parameters\n{cell}"), (OWN + cell,)]:
        with pytest.raises(InvalidInput, match=sentence):
            notebook.experiment(namespace(*cells, runs_dir=runs_dir))


def test_knobs_that_the_cell_does_not_show_can_be_set(runs_dir: Path) -> None:
    cells = (OWN, "# Parameters\ntrunk = 'base'\nlearning_rate = '1e-2'\n")
    values = namespace(*cells, runs_dir=runs_dir)
    found = notebook.experiment(values)
    assert (found.trunk, found.learning_rate) == ("base", 0.01)
    assert values["learning_rate"] == 0.01


def test_a_knob_of_another_notebook_is_refused(runs_dir: Path) -> None:
    cells = (OWN, "# Parameters\nn_seeds = 2\n")
    with pytest.raises(InvalidInput, match="parameter 'n_seeds' is unknown"):
        notebook.experiment(namespace(*cells, runs_dir=runs_dir))


def test_a_notebook_s_own_knobs_are_understood_and_put_back(runs_dir: Path) -> None:
    cells = (OWN + "n_seeds = 3\nwith_gate = False\n", "# Parameters\nwith_gate = 'no'\n")
    values = namespace(*cells, runs_dir=runs_dir)
    assert notebook.experiment(values, "n_seeds", "with_gate").K == 10
    assert (values["n_seeds"], values["with_gate"]) == (3, False)


def test_a_mended_parameters_cell_counts_and_not_the_wrong_one_before(runs_dir: Path) -> None:
    cells = (OWN + "epoch = 3\n", "import os", OWN + "epochs = 3\n", "import os")
    assert notebook.experiment(namespace(*cells, runs_dir=runs_dir)).epochs == 3


def test_a_variable_of_a_later_cell_is_no_parameter(runs_dir: Path) -> None:
    cells = (OWN, "import os", "specialties = affinity = [1]", "x = '# Parameters'\n")
    assert notebook.experiment(namespace(*cells, runs_dir=runs_dir)).specialties == "learned"


def test_papermill_s_own_parameters_are_none(runs_dir: Path) -> None:
    cells = (OWN, "# Parameters\nPAPERMILL_INPUT_PATH = 'x'\n")
    assert notebook.experiment(namespace(*cells, runs_dir=runs_dir)).K == 10


def test_a_notebook_without_a_parameters_cell_is_refused(runs_dir: Path) -> None:
    with pytest.raises(InvalidInput, match=r'no cell .* begins with the comment "# Param'):
        notebook.experiment(namespace("K = 3", runs_dir=runs_dir))
    values = namespace("# parameters\nK = 3\n", runs_dir=runs_dir)
    assert notebook.experiment(values).K == 3


def test_names_of_an_earlier_experiment_are_gone_after_a_refusal(runs_dir: Path) -> None:
    values = namespace(OWN, "# Parameters\nK = 1\n", runs_dir=runs_dir)
    values |= {"experiment": "old", "data": "old"}
    with pytest.raises(InvalidInput, match="K must be"):
        notebook.experiment(values)
    assert not {"experiment", "data"} & set(values)


def test_a_runs_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"runs_dir '.*file/runs' cannot be written"):
        notebook.experiment(namespace(OWN, runs_dir=tmp_path / "file" / "runs"))


# --- what is made of the declarations


OWN_DEFAULTS = {
    "05_your_own_pictures": {"dataset": "lookalikes"},
    "11_sweep": {"dataset": "lookalikes", "Ks": "2, 4"},
    "10_beat_the_machine": {"dataset": "glyphs:160:OQ0CG6S58B3E", "val_fraction": 0.4},
}
"""Of notebooks whose story begins elsewhere."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_s_cell_shows_knobs_as_they_are_declared(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    head, *lines = cell.source.splitlines()
    assert head == (
        "# Parameters: change them here, or with `papermill -p NAME VALUE`.  "
        "All parameters: docs/guide.md"
    )
    shown = [line.split(":")[0] for line in lines]
    own = OWN_DEFAULTS.get(path.stem, {})
    declared = [
        replace(KNOBS[name], default=own.get(name, KNOBS[name].default)).line for name in shown
    ]
    assert lines == declared
    assert shown[:3] == ["dataset", "backbone", "K"]
    assert 8 <= len(shown) <= 12


def test_commands_take_knobs_by_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, sentence in (
        (["--K", "1"], "K must be a whole number of at least 2; got 1."),
        (["--learning-rate", "fast"], "learning_rate must be a number above 0; got 'fast'."),
        (["--output", "/proc/none"], "output '/proc/none/film.gif' cannot be written"),
    ):
        assert main(["dev", "film", "--output", str(tmp_path), *words]) == 2
        assert sentence in capsys.readouterr().err
