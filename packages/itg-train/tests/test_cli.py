import pytest
from itg_train.cli import main, parse
from itg_train.config import OptimConfig
from itg_train.recipes import RECIPES


def test_without_arguments_the_first_recipe_runs_as_it_is():
    name, config = parse([])
    assert name == next(iter(RECIPES))
    assert config == RECIPES[name]()


def test_options_change_a_recipe_by_name():
    name, config = parse(["scripted-small", "--optim.lr", "0.5", "--data.synthetic.seed", "9"])
    assert (name, config.optim.lr, config.data.synthetic.seed) == ("scripted-small", 0.5, 9)


def test_help_names_the_recipes_and_explains_the_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in RECIPES)
    assert "Peak learning rate" in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["videoitg-900b"], "no recipe 'videoitg-900b'; recipes: scripted-small"),
        (["--num-steps", "0"], "num_steps must be >= 1, got 0"),
        (["--data.synthetic.difficulty", "3"], "difficulty must be in 0..1, got 3"),
        (["--optim.lr", "fast"], "--optim.lr"),
    ],
)
def test_bad_input_is_refused_by_name_with_status_2(arguments, reason, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err


def test_a_folder_of_another_run_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert main(["--run-dir", str(tmp_path / "run"), "--engine.device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "not empty and not a run" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("field", "value"), [("lr", 0.0), ("beta2", 1.0), ("warmup_ratio", 2.0), ("weight_decay", -1.0)]
)
def test_optimizer_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        OptimConfig(**({"lr": 1e-3} | {field: value}))
