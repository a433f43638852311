import dataclasses
import json

import pytest
from itg_train import rundir
from itg_train.recipes import scripted_small
from itg_train.rundir import DataFacts, RunDir, RunError, describe_origin

DATA = DataFacts(num_videos=3, num_questions=9, sha256="ab")


@pytest.fixture
def config(tmp_path):
    return dataclasses.replace(scripted_small(), run_dir=tmp_path / "run")


def test_a_run_writes_its_whole_config_and_where_the_code_came_from(config):
    RunDir(config.run_dir).claim("scripted-small", config, DATA)
    described = json.loads((config.run_dir / "config.json").read_text())
    assert described["recipe"] == "scripted-small"
    assert described["config"]["model"]["text"]["hidden_size"] == config.model.text.hidden_size
    origin = json.loads((config.run_dir / "provenance.json").read_text())
    assert origin["packages"]["torch"] == describe_origin()["packages"]["torch"] is not None


def test_the_same_run_may_go_on_and_another_may_not(config):
    RunDir(config.run_dir).claim("scripted-small", config, DATA)
    RunDir(config.run_dir).claim("scripted-small", config, DATA)
    changed = dataclasses.replace(config, num_steps=7)
    with pytest.raises(RunError, match=r"num_steps is 500, not 7.*--run-dir"):
        RunDir(config.run_dir).claim("scripted-small", changed, DATA)


def test_a_run_may_go_on_with_less_memory_and_its_config_says_so(config, caplog):
    caplog.set_level("INFO")
    RunDir(config.run_dir).claim("scripted-small", config, DATA)
    less = dataclasses.replace(
        config,
        tokens_per_pass=512,
        engine=dataclasses.replace(config.engine, recompute="everything"),
    )
    RunDir(config.run_dir).claim("scripted-small", less, DATA)
    assert "goes on changed: engine.recompute is 'nothing', not 'everything'" in caplog.text
    described = json.loads((config.run_dir / "config.json").read_text())
    assert described["config"]["tokens_per_pass"] == 512
    otherwise = dataclasses.replace(less, engine=dataclasses.replace(less.engine, zero_stage=2))
    with pytest.raises(RunError, match=r"engine\.zero_stage is 1, not 2"):
        RunDir(config.run_dir).claim("scripted-small", otherwise, DATA)


def test_every_free_field_is_one_of_the_config(config):
    for path in rundir.FREE:
        value = config
        for name in path:
            value = getattr(value, name)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (DataFacts(num_videos=2, num_questions=6, sha256="cd"), "2 videos with 6 questions now"),
        (dataclasses.replace(DATA, sha256="cd"), "as many now, but not the same"),
    ],
)
def test_a_run_does_not_go_on_with_other_data(config, data, told):
    RunDir(config.run_dir).claim("scripted-small", config, DATA)
    with pytest.raises(RunError, match=f"3 videos with 9 questions then, {told}.*restore"):
        RunDir(config.run_dir).claim("scripted-small", config, data)


def test_a_folder_from_before_data_were_remembered_goes_on(config):
    RunDir(config.run_dir).claim("scripted-small", config, DATA)
    (config.run_dir / "data.json").unlink()
    RunDir(config.run_dir).claim("scripted-small", config, dataclasses.replace(DATA, sha256="cd"))


def test_a_folder_with_other_things_in_it_is_left_alone(config):
    config.run_dir.mkdir()
    (config.run_dir / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="not empty and not a run"):
        RunDir(config.run_dir).claim("scripted-small", config, DATA)
    assert [path.name for path in config.run_dir.iterdir()] == ["thesis.tex"]


def test_a_run_killed_before_it_wrote_its_config_may_start_again(config):
    config.run_dir.mkdir()
    (config.run_dir / "provenance.json").write_text("{}")
    (config.run_dir / "data.json").write_text("{}")
    RunDir(config.run_dir).claim("scripted-small", config, DATA)
    assert json.loads((config.run_dir / "provenance.json").read_text())["packages"]


def test_a_folder_that_a_run_is_at_work_in_is_refused_until_it_ends(config, monkeypatch):
    monkeypatch.setattr(rundir, "LOCK_PATIENCE_S", 0.2)
    config.run_dir.mkdir()
    with (
        RunDir(config.run_dir).held(),
        pytest.raises(RunError, match="another run is at work in this folder"),
        RunDir(config.run_dir).held(),
    ):
        pass
    with RunDir(config.run_dir).held():
        # what a run leaves that found no data
        RunDir(config.run_dir).claim("scripted-small", config, DATA)


def test_metrics_of_steps_taken_again_and_half_a_line_are_cut(tmp_path):
    run_dir = RunDir(tmp_path)
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(5)]
    run_dir.metrics.write_text("\n".join(lines) + '\n{"step": 5, "lo')
    run_dir.cut_metrics(3)
    assert run_dir.metrics.read_text() == "\n".join(lines[:3]) + "\n"
