import subprocess
import sys

import pytest
from itg_train.launch import find_place, first_node, start_workers


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
    assert find_place(SLURM | {"RANK": "0"}) == {}
    batch = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert find_place(batch)["WORLD_SIZE"] == "1"


def test_slurm_without_a_list_of_nodes_is_refused():
    lacking = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}
    with pytest.raises(ValueError, match="SLURM_STEP_NODELIST"):
        find_place(lacking)


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
