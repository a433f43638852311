"""The data set of a run, ready to be learnt from: written if need be, split, encoded."""

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from itg_data.jsonl import read_jsonl
from itg_data.progress import show_progress
from itg_data.records import GroundingRecord
from itg_data.synthetic import load_or_write_dataset
from itg_data.synthetic.script import GENERATOR_VERSION
from transformers import PreTrainedTokenizerBase

from itg_train.config import DataConfig, TrainConfig
from itg_train.dataset import VideoDataset
from itg_train.engine import Processes, wait_for_all
from itg_train.rundir import RunError
from itg_train.tokenizer import train_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a run learns from and is measured on."""

    train: VideoDataset
    heldout: VideoDataset
    tokenizer: PreTrainedTokenizerBase


def prepare(config: TrainConfig, processes: Processes) -> Prepared:
    """Gets the data ready; where it must be written first, the first process does so.

    Raises:
        RunError: A split has no video that can be read.
        RecordError: A line of the records is not what it should be.
    """
    if processes.is_first:
        _load_records(config.data)
    wait_for_all()
    root, records = _load_records(config.data)
    splits = {name: [r for r in records if r.split == name] for name in ("train", "heldout")}
    questions = (record.question for record in splits["train"])
    tokenizer = train_tokenizer(questions, config.model.text.vocab_size)
    datasets: dict[str, VideoDataset] = {}
    for name, of_split in splits.items():
        datasets[name] = VideoDataset(
            of_split,
            root,
            tokenizer,
            config.model.vision.image_size,
            config.data.sampling,
            config.data.cache_mib * 2**20,
        )
        num_dropped = len(datasets[name].drop_unreadable())
        if num_dropped and processes.is_first:
            logger.warning("%s: %d videos dropped", name, num_dropped)
        if len(datasets[name]) == 0:
            raise RunError(f"{root}: the split {name!r} has no video that can be read")
    return Prepared(train=datasets["train"], heldout=datasets["heldout"], tokenizer=tokenizer)


def _load_records(data: DataConfig) -> tuple[Path, list[GroundingRecord]]:
    if data.root is not None:
        return data.root, list(read_jsonl(data.root / "records.jsonl", GroundingRecord))
    described = json.dumps([GENERATOR_VERSION, asdict(data.synthetic)], sort_keys=True)
    root = data.cache_dir / f"scripted-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
    total = data.synthetic.num_train + data.synthetic.num_heldout
    with show_progress("scripted videos", total, unit="videos") as advance:
        records = load_or_write_dataset(
            root,
            data.synthetic,
            num_workers=min(8, os.cpu_count() or 1),
            progress=lambda done, _: advance(done, ""),
        )
    return root, records
