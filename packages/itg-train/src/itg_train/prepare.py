"""What a run learns from, ready: records read, videos looked at and grouped, a tokenizer."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from itg_model.processing import load_tokenizer
from transformers import PreTrainedTokenizerBase

from itg_train.chat import CHATML_MARKS, ChatRecord, ChatTask, has_marks
from itg_train.config import TrainConfig
from itg_train.dataset import Task, VideoDataset
from itg_train.engine import Processes, first_does, gather_from_all
from itg_train.features import FeatureStore
from itg_train.grounding import GroundingTask
from itg_train.index import VideoFacts, index_videos
from itg_train.readers import Readers, ReadSquares
from itg_train.rundir import DataFacts, RunError
from itg_train.sources import Record, Records, load_records
from itg_train.tokenizer import train_tokenizer

logger = logging.getLogger(__name__)

NAMED_VIDEOS = 10
"""Unreadable videos that are named in the log; the index names them all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a run learns from and is measured on."""

    train: VideoDataset
    heldout: VideoDataset
    tokenizer: PreTrainedTokenizerBase


def prepare(config: TrainConfig, processes: Processes, readers: Readers) -> Prepared:
    """Gets the data ready; what is written or looked at, the first process does alone.

    Args:
        config: The run.
        processes: Who trains together.
        readers: Look at files, and read each when its turn comes.

    Raises:
        RunError: There is no video to learn from, or the processes see different ones.
        RecordError: A line of the records is not what it should be.
    """
    found: list[tuple[Records, dict[str, VideoFacts]]] = []

    def find() -> None:
        records = load_records(config.data, config.task)
        found.append((records, _look(config, records, readers)))

    first_does(find)
    if not found:
        find()
    ((records, facts),) = found
    tokenizer = _get_tokenizer(config, records.train)
    train, heldout = (
        _make_dataset(config, records, of_split, facts, tokenizer, readers.read)
        for of_split in (records.train, records.heldout)
    )
    if processes.is_first:
        _report_dropped("train", train)
        _report_dropped("heldout", heldout)
    _check_alike(gather_from_all(describe_data(train, heldout)))
    if len(train) == 0:
        name, reason = next(iter(train.dropped.items()))
        raise RunError(
            f"none of the {len(train.dropped)} videos under {records.root} can be read; "
            f"{name}: {reason}"
        )
    return Prepared(train=train, heldout=heldout, tokenizer=tokenizer)


def describe_data(train: VideoDataset, heldout: VideoDataset) -> DataFacts:
    """What the order of a run's groups, and so every step of it, follows from; and what they teach.

    A question or a label that is corrected in place keeps its id, and moves neither the order nor
    any count: a run that went on with it would have learnt from both.
    """
    groups = [*train.groups, *heldout.groups]
    digest = hashlib.sha256()
    for split in (train, heldout):
        for group in split.groups:
            taught = [_taught_by(record) for record in group.records]
            digest.update(json.dumps([group.video, group.num_frames, taught]).encode() + b"\n")
        digest.update(b"\n")
    return DataFacts(
        num_videos=len({group.video for group in groups if group.video}),
        num_questions=sum(len(group.records) for group in groups),
        sha256=digest.hexdigest(),
    )


def _taught_by(record: Record) -> list[Any]:
    """A record's id and all of it that a task makes ids and labels of."""
    if isinstance(record, ChatRecord):
        return [record.id, record.turns]
    spans = [(span.start_s, span.end_s) for span in record.spans]
    return [record.id, record.question, spans]


def _check_alike(seen: Sequence[DataFacts]) -> None:
    """Each process looks for itself, and if one missed a file all would learn something else."""
    for rank, facts in enumerate(seen):
        if facts != seen[0]:
            raise RunError(
                f"the processes see different videos (process 0: {seen[0]}; process {rank}: "
                f"{facts}); is data.root the same on all machines?"
            )


def attach_store(prepared: Prepared, store: FeatureStore) -> None:
    """Lets both splits read and keep the tower's features."""
    prepared.train.store = prepared.heldout.store = store


def _look(config: TrainConfig, records: Records, readers: Readers) -> dict[str, VideoFacts]:
    videos = [record.video for record in (*records.train, *records.heldout) if record.video]
    data = config.data
    return index_videos(records.root, videos, data.cache_dir, data.num_workers, readers.look)


def _get_tokenizer(config: TrainConfig, records: Sequence[Record]) -> PreTrainedTokenizerBase:
    if config.start.checkpoint is None:
        marks = CHATML_MARKS if config.task == "chat" else ()
        questions = (record.question for record in records)
        tokenizer = train_tokenizer(questions, config.model.text.vocab_size, marks)
    else:
        tokenizer = load_tokenizer(config.start.checkpoint)
    if config.data.pad_token_id is not None:
        tokenizer = _with_pad_token(tokenizer, config.data.pad_token_id)
    return tokenizer


def _with_pad_token(tokenizer: PreTrainedTokenizerBase, token_id: int) -> PreTrainedTokenizerBase:
    """A tokenizer with another pad token, as it is once it was saved and loaded.

    What loads one makes its pad token a word of its own wherever it stands: "?!" is then no longer
    one token but two. A grounder must have learnt from what it will be asked with.
    """
    tokenizer.pad_token_id = token_id
    if tokenizer.pad_token_id != token_id:
        raise RunError(
            f"data.pad_token_id is {token_id}, but the tokenizer has tokens 0 to "
            f"{len(tokenizer) - 1}"
        )
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        return load_tokenizer(directory)


def _make_task(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> Task:
    if config.task == "grounding":
        return GroundingTask(tokenizer)
    if config.chat_template == "chatml" and not has_marks(tokenizer):
        raise RunError(
            f"{config.start.checkpoint}: its tokenizer does not know {' and '.join(CHATML_MARKS)}; "
            "take --chat-template plain, or start from a model that was trained with them"
        )
    return ChatTask(tokenizer, config.chat_template, config.model.tokenizer_model_max_length)


def _make_dataset(
    config: TrainConfig,
    records: Records,
    of_split: Sequence[Record],
    facts: dict[str, VideoFacts],
    tokenizer: PreTrainedTokenizerBase,
    read_squares: ReadSquares,
) -> VideoDataset:
    data = config.data
    return VideoDataset(
        of_split,
        records.root,
        facts,
        _make_task(config, tokenizer),
        config.model.vision.image_size,
        data.sampling,
        data.cache_mib * 2**20,
        data.questions_per_group,
        read_squares=read_squares,
    )


def _report_dropped(split: str, dataset: VideoDataset) -> None:
    if not dataset.dropped:
        return
    for video, reason in list(dataset.dropped.items())[:NAMED_VIDEOS]:
        logger.warning("%s: dropped with its questions: %s: %s", split, video, reason)
    logger.warning("%s: %d videos dropped", split, len(dataset.dropped))
