import dataclasses
import shutil
from contextlib import closing

import pytest
import torch
from itg_data.records import TimeSpan
from itg_model.processing import encode_question, load_tokenizer
from itg_train import prepare as preparing
from itg_train.chat import ChatRecord
from itg_train.config import StartConfig
from itg_train.dataset import Group
from itg_train.engine import Processes
from itg_train.prepare import describe_data, prepare
from itg_train.readers import Readers
from itg_train.recipes import scripted_small
from itg_train.rundir import RunError
from itg_train.tokenizer import train_tokenizer


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


@pytest.mark.parametrize(
    "changes",
    [{"question": "When is it dark?"}, {"spans": (TimeSpan(start_s=1.0, end_s=2.0),)}],
    ids=lambda changes: next(iter(changes)),
)
def test_annotations_that_teach_something_else_under_the_same_ids_change_the_fingerprint(
    make_dataset, changes
):
    train, heldout = make_dataset(), make_dataset(split="heldout")
    before = describe_data(train, heldout)
    first = train.groups[0]
    corrected = dataclasses.replace(first.records[0], **changes)
    records = (corrected, *first.records[1:])
    train.groups[0] = dataclasses.replace(first, records=records)
    assert describe_data(train, heldout).sha256 != before.sha256


def test_conversations_that_say_something_else_change_the_fingerprint(make_dataset):
    dataset = make_dataset()

    def described(text):
        turns = (("human", "What is it?"), ("gpt", text))
        records = (ChatRecord(id="0", video="", turns=turns),)
        dataset.groups = [Group(video="", num_frames=0, records=records)]
        return describe_data(dataset, make_dataset(split="none")).sha256

    assert described("A cat.") == described("A cat.") != described("A dog.")


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


def test_the_records_are_read_once_and_complained_of_once(prepare_with, monkeypatch):
    calls = []
    real = preparing.load_records
    monkeypatch.setattr(preparing, "load_records", lambda *a: calls.append(a) or real(*a))
    prepare_with(lambda mine: mine)
    assert len(calls) == 1


def test_a_question_is_learnt_as_the_checkpoints_tokenizer_will_read_it(tmp_path):
    texts = ["Look?! Where!! Go!"] * 5
    config = scripted_small()
    plain = train_tokenizer(texts, config.model.text.vocab_size)
    plain.save_pretrained(tmp_path / "start")
    mark = plain.convert_tokens_to_ids("!")
    config = dataclasses.replace(
        config,
        start=StartConfig(checkpoint=tmp_path / "start"),
        data=dataclasses.replace(config.data, pad_token_id=mark),
    )
    tokenizer = preparing._get_tokenizer(config, [])
    tokenizer.save_pretrained(tmp_path / "end")
    asked = "Look?! Where!! Go!"
    learnt = encode_question(asked, tokenizer)
    assert learnt.tolist() == encode_question(asked, load_tokenizer(tmp_path / "end")).tolist()
    assert "!" not in tokenizer.decode(learnt[1:])


def test_a_pad_token_that_is_none_is_refused(tmp_path):
    with pytest.raises(RunError, match="pad_token_id is 9999, but the tokenizer has tokens 0 to"):
        preparing._with_pad_token(train_tokenizer(["What?"], 300), 9999)
