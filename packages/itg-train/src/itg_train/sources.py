"""The records of a run, wherever they come from, divided into learnt and held out."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from itg_data.errors import RecordError
from itg_data.jsonl import read_jsonl
from itg_data.progress import show_progress
from itg_data.published import read_published
from itg_data.records import GroundingRecord
from itg_data.synthetic import load_or_write_dataset
from itg_data.synthetic.script import GENERATOR_VERSION

from itg_train.chat import ChatRecord, read_conversations
from itg_train.config import DataConfig
from itg_train.rundir import RunError

logger = logging.getLogger(__name__)

NAMED_RECORDS = 10
"""Records left out that are named; the rest is counted."""

Record = GroundingRecord | ChatRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """Annotated questions by split."""

    root: Path
    """Folder that their video paths are relative to."""
    train: tuple[Record, ...]
    heldout: tuple[Record, ...]


def load_records(data: DataConfig, task: Literal["grounding", "chat"]) -> Records:
    """Reads the records; where the scripted set is wanted and not there, writes it first.

    Raises:
        RunError: The root is missing, or nothing is left to learn from.
        RecordError: The records are not what they should be.
    """
    records: Sequence[Record]
    if data.root is None:
        if task == "chat":
            raise RunError("a chat task needs --data.root and --data.annotations")
        root, records = _load_scripted(data)
    else:
        root = data.root
        if not root.is_dir():
            raise RunError(f"data.root {root}: no such folder; it is where the videos lie")
        path = data.annotations or root / "records.jsonl"
        found = _read_chat(path) if task == "chat" else _read_annotations(path, data)
        records = _with_whole_characters(path, found)
    train, heldout = split_records(records, data.num_heldout)
    if not train:
        raise RunError(f"{data.annotations or root}: no record to learn from")
    return Records(root=root, train=tuple(train), heldout=tuple(heldout))


def _read_annotations(path: Path, data: DataConfig) -> list[GroundingRecord]:
    if path.suffix != ".json":
        return list(read_jsonl(path, GroundingRecord))
    bad: list[RecordError] = []
    records = list(read_published(path, labels=data.labels, on_bad=bad.append))
    _complain(path, bad, len(records))
    return records


def _read_chat(path: Path) -> list[ChatRecord]:
    records, bad = read_conversations(path)
    _complain(path, bad, len(records))
    return records


def _with_whole_characters(path: Path, records: Sequence[Record]) -> list[Record]:
    """Leaves out records with half a character, which no index and no tokenizer takes."""
    good: list[Record] = []
    bad: list[RecordError] = []
    for record in records:
        try:
            "".join((record.id, record.video, record.question)).encode()
        except UnicodeEncodeError:
            where = f"{path}: record {record.id!a} of {record.video!a}"
            bad.append(RecordError(f"{where}: has half a character, a lone surrogate, in its text"))
        else:
            good.append(record)
    _complain(path, bad, len(good))
    return good


def _complain(path: Path, bad: Sequence[RecordError], num_good: int) -> None:
    for complaint in bad[:NAMED_RECORDS]:
        logger.warning("left out: %s", complaint)
    if bad:
        logger.warning("%s: %d of %d records left out", path, len(bad), len(bad) + num_good)


def split_records(records: Sequence[Record], num_heldout: int) -> tuple[list[Record], list[Record]]:
    """Divides records into `train` and `heldout`, by what they say or by their video's hash.

    A record that names a split stays in it, and one of any other split is left out. Of the videos
    whose records name none, the `num_heldout` with the smallest hash are held out: the choice does
    not change when records are added to a video or come in another order. Conversations about
    nothing to see are learnt: together they would be one video, held out or not.
    """
    unnamed = {record.video for record in records if record.split is None and record.video}
    by_hash = sorted(unnamed, key=lambda video: hashlib.sha256(video.encode()).digest())
    chosen = set(by_hash[:num_heldout])
    train: list[Record] = []
    heldout: list[Record] = []
    for record in records:
        split = record.split or ("heldout" if record.video in chosen else "train")
        if split == "train":
            train.append(record)
        elif split == "heldout":
            heldout.append(record)
    return train, heldout


def _load_scripted(data: DataConfig) -> tuple[Path, list[GroundingRecord]]:
    described = json.dumps([GENERATOR_VERSION, asdict(data.synthetic)], sort_keys=True)
    root = data.cache_dir / f"scripted-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
    total = data.synthetic.num_train + data.synthetic.num_heldout
    with show_progress("scripted videos", total, unit="videos") as advance:
        records = load_or_write_dataset(
            root,
            data.synthetic,
            num_workers=len(os.sched_getaffinity(0)),
            progress=lambda done, _: advance(done, ""),
        )
    return root, records
