import dataclasses
import shutil
from contextlib import closing

import pytest
import torch
from itg_train import prepare as preparing
from itg_train.engine import Processes
from itg_train.prepare import describe_data, prepare
from itg_train.readers import Readers
from itg_train.recipes import scripted_small
from itg_train.rundir import RunError


@pytest.fixture
def prepare_with(scripted, tmp_path, monkeypatch):
    def run(others):
        """Prepares in the first process, while the others see what is made of what it sees."""
        config = scripted_small()
        data = dataclasses.replace(config.data, root=scripted[0], cache_dir=tmp_path / "index")
        monkeypatch.setattr(preparing, "first_does", lambda work: work())
        monkeypatch.setattr(preparing, "gather_from_all", lambda mine: [mine, others(mine)])
        processes = Processes(rank=0, world_size=2, device=torch.device("cpu"))
        with closing(Readers(1)) as readers:
            return prepare(dataclasses.replace(config, data=data), processes, readers)

    return run


def test_processes_that_see_different_videos_do_not_begin(prepare_with):
    assert len(prepare_with(lambda mine: mine).train) == 3
    with pytest.raises(RunError, match=r"process 1: 2 videos .* is data.root the same") as caught:
        prepare_with(lambda mine: dataclasses.replace(mine, num_videos=2, sha256="cd"))
    assert "\n" not in str(caught.value)


def test_what_the_order_of_steps_follows_from_makes_the_fingerprint(
    make_dataset, scripted, tmp_path
):
    train, heldout = make_dataset(), make_dataset(split="heldout")
    whole = describe_data(train, heldout)
    assert whole == describe_data(make_dataset(), make_dataset(split="heldout"))
    assert (whole.num_videos, whole.num_questions) == (4, len(scripted[1]))
    root = tmp_path / "set"
    shutil.copytree(scripted[0], root)
    (root / train.groups[1].video).unlink()
    fewer = describe_data(make_dataset(root=root), heldout)
    assert fewer.num_videos == 3
    others = [
        fewer,
        describe_data(heldout, train),
        describe_data(make_dataset(questions_per_group=1), heldout),
        describe_data(train, make_dataset(split="none")),
    ]
    assert len({each.sha256 for each in [whole, *others]}) == 5
