import os
import signal
import subprocess
import sys

import pytest
from itg_train.launch import _free_port, find_place, first_node, is_first, start_workers


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[007-010,12],login", "gpu007"),
        ("rack3-gpu[4,6]-ib", "rack3-gpu4-ib"),
    ],
)
def test_the_first_host_of_slurms_list(nodes, first):
    assert first_node(nodes) == first


SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "41234",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[3-4]",
}


def test_a_task_of_srun_finds_its_place():
    place = find_place(SLURM)
    assert (place["RANK"], place["LOCAL_RANK"], place["WORLD_SIZE"]) == ("5", "1", "8")
    assert (place["MASTER_ADDR"], place["MASTER_PORT"]) == ("gpu3", "21234")
    assert find_place(SLURM | {"MASTER_PORT": "5"})["MASTER_PORT"] == "5"


def test_what_a_launcher_said_stays_and_a_batch_script_is_a_single_process():
    assert find_place(SLURM | {"RANK": "0", "WORLD_SIZE": "1"}) == {}
    place = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "gpu3", "MASTER_PORT": "5"}
    assert find_place(SLURM | place) == {}
    batch = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert find_place(batch)["WORLD_SIZE"] == "1"


@pytest.mark.parametrize(
    ("left_over", "missing"),
    [({}, "WORLD_SIZE"), ({"WORLD_SIZE": "2", "MASTER_ADDR": "gpu3"}, "MASTER_PORT")],
)
def test_what_a_launcher_left_behind_is_no_place(left_over, missing):
    with pytest.raises(ValueError, match=f"RANK is set without {missing}: "):
        find_place({"RANK": "0", **left_over})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"RANK": "2"}, "RANK must be below WORLD_SIZE .2., got 2"),
        ({"RANK": "-1"}, "RANK must be a whole number, got '-1'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number, got 'two'"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK must be a whole number, got ''"),
    ],
)
def test_a_place_that_cannot_be_is_refused(wrong, said):
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "gpu3", "MASTER_PORT": "5"}
    with pytest.raises(ValueError, match=said):
        find_place(place | wrong)
    assert is_first(place | wrong)


@pytest.mark.parametrize("lacking", ["SLURM_STEP_NODELIST", "SLURM_PROCID"])
def test_slurm_without_a_variable_is_refused(lacking):
    with pytest.raises(ValueError, match=lacking):
        find_place({name: value for name, value in SLURM.items() if name != lacking})


def test_the_first_process_is_known_before_any_launchers_variables_are_set():
    assert is_first({})
    assert is_first(SLURM | {"SLURM_PROCID": "0"})
    assert not is_first(SLURM)
    assert not is_first({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "5"})


def test_when_one_process_fails_the_others_are_stopped_and_its_status_is_ours(monkeypatch):
    script = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)"
    real = subprocess.Popen
    started = []

    def instead(command, **options):
        started.append(real([sys.executable, "-c", script], **options))
        return started[-1]

    monkeypatch.setattr("itg_train.launch.subprocess.Popen", instead)
    assert start_workers([], 2) == 3
    assert all(process.poll() is not None for process in started)


def test_a_process_that_is_killed_is_named_with_what_killed_it(monkeypatch, capfd):
    script = (
        "import os, signal, time\n"
        "if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(60)"
    )
    real = subprocess.Popen
    monkeypatch.setattr(
        "itg_train.launch.subprocess.Popen",
        lambda command, **options: real([sys.executable, "-c", script], **options),
    )
    assert start_workers([], 2) == 128 + signal.SIGKILL
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("itg-train: process 1 was ended by signal 9, Killed. Did memory run")


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_where_one_process_fails_it_says_why_and_the_others_that_they_end(failing, tmp_path):
    script = f"""
import sys
from itg_data.errors import ItgError
from itg_train import cli, engine, run
from itg_train.config import EngineConfig

def work(recipe, config):
    processes = engine.join_processes(EngineConfig(device="cpu"))
    if processes.rank == {failing}:
        raise ItgError("no good")
    engine.wait_for_all()

run.run = work
sys.exit(cli.main([]))
"""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1].splitlines() for process in pair]
    other = 1 - failing
    assert said[failing] == ["itg-train: no good"]
    assert said[other] == [
        f"itg-train: process {other} ends because another one has, which says why"
    ]
    assert [process.returncode for process in pair] == [2, 2]
