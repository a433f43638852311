import dataclasses
import json
from typing import Any, cast

import numpy as np
import pytest
import torch
from itg_data.errors import RecordError
from itg_data.sampling import SamplingConfig
from itg_model.model import VIDEO_TOKEN_ID, FrameGroundingModel
from itg_train.chat import IGNORED, ChatRecord, ChatTask, has_marks, read_conversations
from itg_train.chat_loss import ChatLoss
from itg_train.dataset import VideoDataset, VideoSample
from itg_train.loader import Pass
from itg_train.tokenizer import train_tokenizer
from torch import nn

MARKS = ("<|im_start|>", "<|im_end|>")


def turns(*texts):
    roles = ("human", "gpt") * len(texts)
    return [{"from": role, "value": text} for role, text in zip(roles, texts, strict=False)]


@pytest.fixture
def tokenizer():
    return train_tokenizer(["What is this?", "A red square."], 300, MARKS)


def record(*texts, video="a.png"):
    said = tuple((turn["from"], turn["value"]) for turn in turns(*texts))
    return ChatRecord(id="0", video=video, turns=said)


def test_only_what_the_assistant_says_is_learnt_with_the_mark_that_ends_it(tokenizer):
    task = ChatTask(tokenizer, "chatml", 512)
    each = record("<image>\nWhat is this?", "A red square.", "Sure?", "Yes.")
    ids, labels = task.encode(each), task.label(each, np.zeros(1))
    learnt = tokenizer.decode(labels[labels != IGNORED])
    assert learnt == "A red square.<|im_end|>Yes.<|im_end|>"
    assert torch.equal(ids[labels != IGNORED], labels[labels != IGNORED])
    assert (ids == VIDEO_TOKEN_ID).sum() == 1
    whole = tokenizer.decode(ids[ids != VIDEO_TOKEN_ID])
    assert whole.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert "<|im_start|>user\n\nWhat is this?<|im_end|>\n<|im_start|>assistant\n" in whole


def test_the_plain_template_leaves_out_what_the_human_says(tokenizer):
    task = ChatTask(tokenizer, "plain", 512)
    ids = task.encode(record("<image>\nDescribe it.", "A red square."))
    assert ids[0] == VIDEO_TOKEN_ID
    assert tokenizer.decode(ids[1:]) == "A red square.\n"


def test_an_image_that_is_nowhere_mentioned_comes_first(tokenizer):
    ids = ChatTask(tokenizer, "chatml", 512).encode(record("What is this?", "A red square."))
    assert (ids == VIDEO_TOKEN_ID).sum() == 1


@pytest.mark.parametrize("num_after", [1, 40])
def test_a_conversation_cut_before_its_image_keeps_the_image_and_what_follows(tokenizer, num_after):
    long = record("Wait. " * 60, "Yes.", "<image>\nWhat is this?", "A red square. " * num_after)
    whole = ChatTask(tokenizer, "chatml", 10_000).encode(long)
    task = ChatTask(tokenizer, "chatml", 100)
    ids, labels = task.encode(long), task.label(long, np.zeros(1))
    assert (whole[:100] != VIDEO_TOKEN_ID).all()
    assert len(ids) == len(labels) == 100
    assert (ids == VIDEO_TOKEN_ID).sum() == 1
    assert "A red square." in tokenizer.decode(labels[labels != IGNORED])
    # in one piece
    assert any(torch.equal(piece, ids) for piece in whole.unfold(0, 100, 1))


def test_a_conversation_cut_behind_its_image_begins_as_it_did(tokenizer):
    long = record("<image>\nWhat is this?", "A red square. " * 60)
    whole = ChatTask(tokenizer, "chatml", 10_000).encode(long)
    assert torch.equal(ChatTask(tokenizer, "chatml", 100).encode(long), whole[:100])


def test_a_tokenizer_without_marks_is_told_apart(tokenizer):
    assert has_marks(tokenizer)
    assert not has_marks(train_tokenizer(["no marks here"], 300))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"conversations": turns("a")}, "human and gpt by turns"),
        ({"conversations": turns("a", "b")[::-1]}, "turn 0 must be from 'human'"),
        ({"conversations": turns("<image>", "b")}, "says <image> 1 times, with 0 to show"),
        ({"image": "../x.png", "conversations": turns("a", "b")}, "inside the set's root"),
        ({"image": ["a.png", "b.png"], "conversations": turns("a", "b")}, "2 images"),
        ({"image": "a.png", "conversations": turns("a", " ")}, "must have a text"),
        ("text", "must be an object"),
    ],
)
def test_a_broken_conversation_is_left_out_by_number_and_reason(tmp_path, broken, reason):
    path = tmp_path / "chat.json"
    path.write_text(json.dumps([{"id": 7, "conversations": turns("Hi", "Hello")}, broken]))
    records, bad = read_conversations(path)
    assert [each.id for each in records] == ["7"]
    assert len(bad) == 1
    assert "record 1" in str(bad[0])
    assert reason in str(bad[0])


@pytest.fixture
def module(tiny_model_config):
    torch.manual_seed(0)
    model = FrameGroundingModel(tiny_model_config).eval()
    return ChatLoss(model, nn.Linear(16, 300, bias=False))


def sample_of(ids, labels, num_frames, side=1):
    return VideoSample(
        video="x",
        frames=torch.rand(num_frames, 3, 32, 32),
        time_s=np.arange(num_frames, dtype=float),
        input_ids=(torch.tensor(ids),),
        labels=(torch.tensor(labels),),
        records=(record("a", "b"),),
        sides=(side,),
    )


def test_a_token_never_sees_what_comes_after_it(module):
    ids = [VIDEO_TOKEN_ID, 5, 6, 7, 8]
    labels = [IGNORED, IGNORED, 6, IGNORED, IGNORED]
    sample = sample_of(ids, labels, 2)
    later = sample.input_ids[0].clone()
    later[-1] = 99
    first = module(Pass(samples=(sample,)))
    second = module(Pass(samples=(dataclasses.replace(sample, input_ids=(later,)),)))
    assert torch.equal(first, second)
    earlier = sample.input_ids[0].clone()
    earlier[1] = 99
    third = module(Pass(samples=(dataclasses.replace(sample, input_ids=(earlier,)),)))
    assert not torch.equal(first, third)


def test_mixed_conversations_cost_what_each_costs_alone(module):
    seen = sample_of([VIDEO_TOKEN_ID, 5, 6], [IGNORED, IGNORED, 6], 3, side=2)
    text = sample_of([4, 5, 6, 7], [IGNORED, 5, 6, 7], 0, side=0)
    together = module(Pass(samples=(seen, text)))
    alone = module(Pass(samples=(seen,))) + module(Pass(samples=(text,)))
    torch.testing.assert_close(together, alone)


def test_a_conversation_cut_off_before_its_answer_costs_nothing(module):
    cut = sample_of([VIDEO_TOKEN_ID, 5, 6], [IGNORED] * 3, 1)
    loss = module(Pass(samples=(cut,)))
    loss.backward()
    assert loss == 0


def test_a_list_nested_too_deeply_is_refused_in_a_line(tmp_path):
    path = tmp_path / "chat.json"
    path.write_text("[" * 100_000)
    with pytest.raises(RecordError, match="nested too deeply"):
        read_conversations(path)


def test_conversations_without_a_video_are_groups_of_their_own_though_they_share_an_id(tmp_path):
    said = (("human", "Hi"), ("gpt", "Hello"))
    records = [ChatRecord(id="7", video="", turns=said) for _ in range(3)]
    dataset = VideoDataset(records, tmp_path, {}, cast(Any, None), 32, SamplingConfig(), 0)
    assert [len(group.records) for group in dataset.groups] == [1, 1, 1]
