import dataclasses
import logging

import pytest
import torch
from itg_train.cli import main, parse, take_nproc
from itg_train.config import OptimConfig, to_plain
from itg_train.recipes import RECIPES, to_options
from itg_train.rundir import RunDir

SPEAKING = ("itg_train.dataset", "itg_train.evaluate")


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
        (["--seed", "-1"], "seed must be >= 0, got -1"),
        (["--data.synthetic.seed", "-1"], "synthetic.seed must be >= 0, got -1"),
        (["--model.text.vocab-size", "100"], "vocab_size must be >= 257"),
        (["--nproc", "none"], "--nproc must be a number of processes, got 'none'"),
        (["--trainable.lora-rank", "0"], "trainable.lora_rank must be >= 1, got 0"),
        (["--engine.offload", "optimizer", "--engine.zero-stage", "0"], "engine.offload needs"),
        (["--data.annotations", "x.json"], "pass data.root as well"),
        (["--data.features-dir", "x"], "data.features_dir is x"),
        (["--model.vision-token-num", "8"], "data.sampling.max_frames must be <="),
        (["--model.vision-token-num", "1024"], "model.vision_token_num must be <"),
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


def test_a_run_dir_that_is_a_file_is_refused_in_one_line(tmp_path, capsys):
    path = tmp_path / "run"
    path.write_text("mine")
    assert main(["--run-dir", str(path), "--engine.device", "cpu"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"itg-train: --run-dir {path}: File exists"
    assert path.read_text() == "mine"


def test_a_data_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "data").write_text("a file, not a folder")
    options = {"run-dir": tmp_path / "run", "data.cache-dir": tmp_path / "data"}
    flags = [str(word) for name, path in options.items() for word in (f"--{name}", path)]
    assert main([*flags, "--engine.device", "cpu"]) == 2
    assert str(tmp_path / "data") in capsys.readouterr().err.splitlines()[-1]


def test_a_gpu_asked_for_where_there_is_none_is_refused_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["--run-dir", str(tmp_path), "--engine.device", "cuda"]) == 2
    assert "torch finds no GPU" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("field", "value"), [("lr", 0.0), ("beta2", 1.0), ("warmup_ratio", 2.0), ("weight_decay", -1.0)]
)
def test_optimizer_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        OptimConfig(**({"lr": 1e-3} | {field: value}))


def test_a_run_that_finds_no_data_leaves_its_folder_to_the_corrected_command(tmp_path, capsys):
    flags = ["--run-dir", str(tmp_path / "run"), "--data.root", str(tmp_path / "typo")]
    assert main([*flags, "--engine.device", "cpu"]) == 2
    assert "typo" in capsys.readouterr().err
    config = dataclasses.replace(RECIPES["scripted-small"](), run_dir=tmp_path / "run")
    RunDir(tmp_path / "run").check("scripted-small", config)
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_number_of_processes_may_stand_anywhere_and_deepspeeds_own_word_is_dropped():
    words = ["scripted-small", "--nproc", "3", "--seed", "1", "--local_rank=2"]
    assert take_nproc(words) == (["scripted-small", "--seed", "1"], 3)
    assert take_nproc(["--nproc=2"]) == ([], 2)
    assert take_nproc([]) == ([], 1)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError("Unable to allocate 3 GiB"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "numpy", "python"],
)
def test_memory_that_is_full_outside_a_step_is_said_in_one_line(
    tmp_path, capsys, monkeypatch, error
):
    def fail(*_):
        raise error

    monkeypatch.setattr("itg_train.run.prepare", fail)
    assert main(["--run-dir", str(tmp_path / "run"), "--engine.device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("itg-train: out of memory (")
    assert "--frame-chunk" in line


def test_a_checkpoint_to_start_from_that_is_not_there_is_refused_before_the_data(tmp_path, capsys):
    arguments = ["--run-dir", str(tmp_path / "run"), "--start.checkpoint", str(tmp_path / "no")]
    assert main([*arguments, "--engine.device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"itg-train: start.checkpoint {tmp_path / 'no'}: no such directory\n")


def test_a_missing_root_is_refused_in_one_line(tmp_path, capsys):
    flags = ["--run-dir", str(tmp_path / "run"), "--data.root", str(tmp_path / "gone")]
    assert main([*flags, "--engine.device", "cpu"]) == 2
    assert "gone: no such folder" in capsys.readouterr().err.splitlines()[-1]


def test_wandb_asked_for_and_not_installed_is_refused_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    flags = ["--run-dir", str(tmp_path / "run"), "--wandb-project", "mine"]
    assert main([*flags, "--engine.device", "cpu"]) == 2
    assert "wandb is not installed" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_whole_config_with_a_first_line(name):
    assert RECIPES[name]().run_dir.name == name
    assert len((RECIPES[name].__doc__ or "").splitlines()[0]) > 20


def test_the_reference_recipe_has_the_references_rates_and_batch():
    config = RECIPES["videoitg-7b"]()
    assert (config.optim.lr, config.optim.head_lr, config.optim.projector_lr) == (2e-5, 2e-4, 2e-4)
    assert config.groups_per_step * config.data.questions_per_group == 128
    assert (config.data.sampling.max_frames, config.data.pad_token_id) == (1024, 0)
    assert config.random_pooled_side
    assert not config.trainable.tower
    assert config.optim.max_grad_norm == 0


def test_the_options_told_of_a_config_make_it_again():
    options = [
        *("--trainable.no-tower", "--random-pooled-side", "--num-steps", "7"),
        *("--data.synthetic.difficulty", "0.25", "--optim.head-lr", "0.5"),
    ]
    recipe, config = parse(["scripted-small", *options])
    told = to_options(recipe, to_plain(config))
    assert parse([recipe, *told]) == (recipe, config)
    assert sorted(told) == sorted(options)
    assert to_options(recipe, to_plain(config), but=["num-steps"]) == [
        word for word in told if word not in ("--num-steps", "7")
    ]
    assert to_options(recipe, to_plain(RECIPES[recipe]())) == []


@pytest.mark.parametrize(
    "place",
    [
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "5"},
        {
            "SLURM_STEP_ID": "0",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": "1",
            "SLURM_STEP_NODELIST": "a",
        },
    ],
    ids=["torchrun", "srun"],
)
def test_what_befalls_a_process_alone_is_said_by_it_and_all_else_by_the_first(
    tmp_path, capsys, monkeypatch, place
):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in place.items():
        monkeypatch.setenv(name, value)

    def run(recipe, config):
        for module in ("dataset", "evaluate", "prepare"):
            logging.getLogger(f"itg_train.{module}").warning("of %s", module)
        return ""

    monkeypatch.setattr("itg_train.run.run", run)
    levels = {name: logging.getLogger(name).level for name in ("", *SPEAKING)}
    try:
        assert main(["--run-dir", str(tmp_path)]) == 0
        assert capsys.readouterr().err == "of dataset\nof evaluate\n"
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
