"""One lmms-eval for many tests, for its import takes 20 seconds; hosts that tell what they saw."""

import json
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from itg_data.jsonl import write_jsonl
from itg_data.video import open_video
from itg_eval.lmms.documents import load_documents
from itg_eval.records import Document, DocumentSelection, Selections
from itg_eval.scripted.benchmark import ScriptedConfig, write_benchmark
from PIL import Image

TOP_K = 8


@dataclass
class Seen:
    """What a host model was given for one question."""

    doc_id: int
    images: list[Image.Image]
    texts: list[str]
    videos: list[Any]
    metadata: dict[str, Any]


@dataclass
class Probe:
    """All that the host models named probe were given."""

    seen: list[Seen] = field(default_factory=list)
    hosts: list[Any] = field(default_factory=list)

    def by_doc(self) -> dict[int, Seen]:
        return {seen.doc_id: seen for seen in self.seen}


@dataclass(frozen=True)
class Task:
    """The scripted benchmark, its questions, and how to ask them."""

    folder: Path
    rows: list[dict[str, Any]]
    documents: list[Document]
    evaluate: Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("scripted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        write_benchmark(folder, ScriptedConfig(num_videos=3), num_workers=2)
        documents = load_documents(["itg_scripted"], folder)
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]

    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(
        "ERROR", include_path=str(folder), include_defaults=False, model_name="itg"
    )

    def evaluate(host: str, selection: Path | None, *more: str, **kwargs: Any) -> dict[str, Any]:
        args = [f"inner={host}"]
        if selection is not None:
            args += [f"selection={selection}", f"frames_sha={Selections.load(selection).sha256}"]
        return simple_evaluate(
            **{
                "model": "itg",
                "model_args": ",".join([*args, *more]),
                "tasks": ["itg_scripted"],
                "task_manager": manager,
                "batch_size": 1,
                "bootstrap_iters": 0,
                **kwargs,
            }
        )

    return Task(folder, rows, documents, evaluate)


@pytest.fixture
def probe(task: Task) -> Iterator[Probe]:
    """Hosts `probe` (chat and simple): batched as lmms-eval's own are, they answer C."""
    from lmms_eval.api.model import lmms
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.models.registry_v2 import ModelManifest

    told = Probe()

    class Chat(lmms):
        is_simple = False

        def __init__(self, batch_size: int = 1, num_frame: int = 0) -> None:
            super().__init__()
            self.batch_size, self.num_frame, self.cleaned = int(batch_size), num_frame, False
            told.hosts.append(self)

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            place = 2 if self.is_simple else 1
            for start in range(0, len(requests), self.batch_size):
                batch = requests[start : start + self.batch_size]
                first = batch[0].args[place]
                for request in batch:
                    # many hosts take what they need out of the dict that they are given
                    request.args[1 if self.is_simple else 2].clear()
                    doc_id, name, split = request.args[-3:]
                    given = first(self.task_dict[name][split][doc_id])
                    told.seen.append(self.look(doc_id, given, request))
            return ["C"] * len(requests)

        def look(self, doc_id: int, given: Any, request: Any) -> Seen:
            contents = [content for message in given for content in message["content"]]
            by_type: dict[str, list[Any]] = {"image": [], "text": [], "video": []}
            for content in contents:
                by_type[content["type"]].append(content.get("text", content.get("url")))
            return Seen(
                doc_id, by_type["image"], by_type["text"], by_type["video"], request.metadata
            )

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            for request in requests:
                doc_id, name, split = request.args[-3:]
                images = request.args[2](self.task_dict[name][split][doc_id])
                told.seen.append(Seen(doc_id, images, [request.args[0]], [], request.metadata))
            return [(-1.0, False)] * len(requests)

        def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
            for request in requests:
                doc_id, name, split = request.args[-3:]
                given, *_ = request.args[1](
                    self.task_dict[name][split][doc_id],
                    round_idx=0,
                    previous_output=[],
                    previous_round_info=None,
                )
                told.seen.append(self.look(doc_id, given, request))
            return ["C"] * len(requests)

        def clean(self) -> None:
            self.cleaned = True

    class Simple(Chat):
        is_simple = True

        def look(self, doc_id: int, given: Any, request: Any) -> Seen:
            images = [visual for visual in given if isinstance(visual, Image.Image)]
            videos = [visual for visual in given if isinstance(visual, str)]
            return Seen(doc_id, images, [request.args[0]], videos, request.metadata)

    module = types.ModuleType("itg_probe")
    module.Chat, module.Simple = Chat, Simple  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "itg_probe", module)
        MODEL_REGISTRY_V2.register_manifest(
            ModelManifest("probe", "itg_probe.Simple", "itg_probe.Chat"), overwrite=True
        )
        yield told


def make_selection(
    documents: Sequence[Document], rows: Sequence[dict[str, Any]], kind: str, top_k: int = TOP_K
) -> list[DocumentSelection]:
    """Frames of the labelled seconds (`labelled`), or the middles of equal parts (`uniform`).

    Labelled ones stand for what a perfect scorer would choose.
    """
    chosen: list[DocumentSelection] = []
    for document, row in zip(documents, rows, strict=True):
        with open_video(document.video) as video:
            if kind == "labelled":
                times_s = np.arange(np.ceil(row["start_s"]), row["end_s"])
                source_idx = (times_s * video.fps).astype(int)[:top_k]
            else:
                source_idx = (np.arange(top_k) * 2 + 1) * video.num_frames // (2 * top_k)
            chosen.append(
                DocumentSelection(
                    task=document.task,
                    split=document.split,
                    doc_id=document.doc_id,
                    video=document.video,
                    question_sha256=document.question_sha256,
                    scorer="labels",
                    sampling="train-1hz-max512",
                    policy=kind,
                    top_k=top_k,
                    fps=video.fps,
                    source_idx=tuple(source_idx.tolist()),
                    time_s=tuple(video.times_s(source_idx).tolist()),
                    scores=(None,) * len(source_idx),
                )
            )
    return chosen


@pytest.fixture(scope="session")
def selections(task: Task, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of selections for all questions: `uniform` and `labelled`."""
    folder = tmp_path_factory.mktemp("selections")
    paths: dict[str, Path] = {}
    for kind in ("uniform", "labelled"):
        paths[kind] = folder / f"{kind}.jsonl"
        write_jsonl(paths[kind], make_selection(task.documents, task.rows, kind))
    return paths


@pytest.fixture(scope="session")
def frames_of(task: Task) -> Callable[[DocumentSelection], np.ndarray]:
    """Decodes a selection's frames apart from the code under test."""

    def read(selection: DocumentSelection) -> np.ndarray:
        with open_video(selection.video, backend="pyav") as video:
            return video.read(selection.source_idx).frames

    return read
