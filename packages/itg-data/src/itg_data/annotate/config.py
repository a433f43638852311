"""Everything that a run of the pipeline depends on, and the annotator that it names."""

import hashlib
import json
import math
import os
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Protocol

from itg_data.annotate.desk import Annotator, AnswerStore, Desk
from itg_data.annotate.features import NOTHING, identify_features, load_features
from itg_data.annotate.frames import Decoders, PictureConfig
from itg_data.annotate.openai_client import OpenAIAnnotator, ServerConfig
from itg_data.annotate.pipeline import Workshop
from itg_data.annotate.qa import QaFile
from itg_data.annotate.records import PASSING_REASONS, DropReason
from itg_data.annotate.replay import ReplayAnnotator
from itg_data.annotate.requests import STAGES, Sampler, prompt_sha256
from itg_data.errors import InputError

Engine = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalConfig:
    """An image-text-to-text model in this process."""

    folder: Path
    device: str = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig:
    """The ledger of an earlier run."""

    cassette: Path


AnnotatorConfig = ServerConfig | LocalConfig | ReplayConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """What the annotator's tokens cost."""

    usd_per_million_prompt_tokens: float = 0.0
    usd_per_million_completion_tokens: float = 0.0

    def __post_init__(self) -> None:
        for name, price in asdict(self).items():
            if not 0 <= price < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {price}")

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Adds up."""
        return (
            prompt_tokens * self.usd_per_million_prompt_tokens
            + completion_tokens * self.usd_per_million_completion_tokens
        ) / 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One run of the pipeline."""

    videos: Path
    qa: Path
    out: Path
    annotator: AnnotatorConfig
    sampler: Sampler
    pictures: PictureConfig = field(default_factory=PictureConfig)
    features: str = NOTHING
    """`thumbnails`, `none`, or the folder of a CLIP or SigLIP checkpoint."""
    concurrency: int = 16
    """Requests under way at the same time."""
    num_decoders: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Videos decoded at the same time."""
    prices: Prices = field(default_factory=Prices)
    engine: Engine = "local"
    retry_rejected: bool = False
    """Asks again what the server rejected in earlier runs: it may have been mended."""
    ray_address: str | None = None
    """Cluster to join; None starts one on this machine."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "num_decoders"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")

    def open_qa(self) -> QaFile:
        """Looks at what a run starts from.

        Raises:
            RecordError: The file of QA pairs is not what it should be.
            InputError: There is no folder of videos.
        """
        if not self.videos.is_dir():
            raise InputError(f"--videos must be a folder, got {self.videos}")
        return QaFile(self.qa)

    @property
    def videos_at_once(self) -> int:
        """Videos under way: enough to keep decoders and annotator busy, and memory small."""
        return max(2 * self.num_decoders, self.concurrency // 4)

    @property
    def retried(self) -> frozenset[DropReason]:
        """What is asked again although it failed in an earlier run."""
        rejected: set[DropReason] = {"rejected_by_server"} if self.retry_rejected else set()
        return PASSING_REASONS | rejected

    def fingerprint(self, qa_sha256: str) -> str:
        """Hashes what decides the set; not who asks, how fast, or on which machines.

        Of the videos it knows the folder; the shards know what lay there.
        """
        decides = {
            "version": version("itg-data"),
            "qa": qa_sha256,
            "sampler": asdict(self.sampler),
            "pictures": asdict(self.pictures),
            "features": identify_features(self.features),
            "videos": str(self.videos.resolve()),
            "prompts": {stage: prompt_sha256(stage) for stage in STAGES},
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


class ClosableAnnotator(Annotator, Protocol):
    """An annotator that holds connections or files."""

    async def close(self) -> None:
        """Lets go of them."""
        ...


def build_annotator(config: AnnotatorConfig, sampler: Sampler) -> ClosableAnnotator:
    """Opens the door to a model.

    Raises:
        ItgError: An extra is missing, or the checkpoint or the cassette is not there.
    """
    if isinstance(config, ServerConfig):
        return OpenAIAnnotator(config, sampler)
    if isinstance(config, ReplayConfig):
        return ReplayAnnotator(config.cassette, sampler)
    from itg_data.annotate.local import LocalAnnotator

    return LocalAnnotator(config.folder, sampler, config.device)


@asynccontextmanager
async def open_workshop(
    config: RunConfig, store: AnswerStore, spool: Path
) -> AsyncGenerator[Workshop]:
    """Brings together what annotating needs, for as long as the block lasts."""
    annotator = build_annotator(config.annotator, config.sampler)
    executor = ThreadPoolExecutor(config.num_decoders, thread_name_prefix="decoder")
    cores = len(os.sched_getaffinity(0))
    try:
        yield Workshop(
            videos=config.videos,
            spool=spool,
            desk=Desk(annotator, store, config.sampler, config.concurrency),
            decoders=Decoders(executor, config.num_decoders, max(1, cores // config.num_decoders)),
            pictures=config.pictures,
            features=load_features(config.features),
        )
    finally:
        executor.shutdown(cancel_futures=True)
        await annotator.close()
