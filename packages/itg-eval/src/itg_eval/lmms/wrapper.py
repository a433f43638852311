# pyright: standard
# lmms_eval is not typed
"""The model that shows another model our frames instead of the video.

    --model itg --model_args inner=qwen3_vl,selection=FILE,frames_sha=HASH,pretrained=...
    ITG_SHADOW=qwen3_vl, --model qwen3_vl --model_args selection=FILE,frames_sha=HASH,pretrained=...

The inner model is lmms-eval's own class, untouched. Before it sees a request, the request's
callable is exchanged for one that asks the task for its visuals or messages and puts the selected
frames where the video was. Batched models call the first request's callable for every document of
a batch, with nothing but the document's row; so the rows that the inner model looks up know which
document they are (`KeyedTasks`), and one callable serves all.

`frames_sha` must be the hash of the selection: as a part of the model arguments it is a part of
lmms-eval's cache key, so the cache never answers from other frames.
"""

import copy
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from itg_data.errors import ItgError
from itg_data.jsonl import read_jsonl
from lmms_eval.api.instance import Instance, unwrap_generation_output
from lmms_eval.api.model import lmms
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.models.registry_v2 import ModelRegistryV2

from itg_eval.lmms.arguments import identify, read_secrets
from itg_eval.lmms.documents import document_of, video_path
from itg_eval.lmms.entry import SHADOW_VARIABLE, builtin_manifests
from itg_eval.lmms.forms import choose_form, frame_count
from itg_eval.lmms.frames import Frames, read_frames, uniform_source_idx
from itg_eval.lmms.journal import Journal
from itg_eval.lmms.keyed import KeyedRow, KeyedTasks
from itg_eval.lmms.qwen import tell_true_times
from itg_eval.lmms.show import Show
from itg_eval.records import Key, Selections, by_key, format_key
from itg_eval.scores import Failure

# lmms-eval's own log shows warnings only as well
logger = logging.getLogger(__name__)

_SHARED = ("_rank", "_world_size", "accelerator", "task_dict")
_BATCHES_PER_CALL = 16
"""Batches that the inner model is given at once where answers are written down as they come."""


class ITG(lmms):
    """Shows an inner model selected frames; all it does not know itself is the inner model's.

    Args:
        inner: Id of the host model in lmms-eval.
        selection: File of `DocumentSelection`s.
        frames_sha: Their hash, `Selections.sha256`.
        frames_as: Form in which the host gets frames; None for the one in `forms.HOSTS`.
        missing: `fail` if a document has no selection, or `uniform` to show it evenly spaced
            frames, count it and say so.
        timestamps: Whether pictures come with their times, where the form allows it.
        journal: Folder for answers as they come; None keeps none.
        left_out: File of the documents that are not asked, for their videos cannot be read; the
            answer to them is empty. None where all are asked.
        inner_args: The host's own arguments.

    Raises:
        ItgError: An argument is not usable.
        RecordError: The file of selections is broken.
    """

    is_simple = False

    def __init__(
        self,
        inner: str,
        selection: str,
        frames_sha: str | None = None,
        frames_as: str | None = None,
        missing: str = "fail",
        timestamps: bool = True,
        journal: str | None = None,
        left_out: str | None = None,
        **inner_args: Any,
    ) -> None:
        super().__init__()
        if missing not in ("fail", "uniform"):
            raise ItgError(f"missing must be fail or uniform, got {missing!r}")
        self._selections = _load_selections(selection, frames_sha)
        self._selection_file = selection
        self._shows_uniform = missing == "uniform"
        self._left_out = set(by_key(read_jsonl(left_out, Failure))) if left_out else set[Key]()
        self._top_k = max(chosen.top_k for chosen in self._selections.values())
        host = _host_class(inner, force_simple=type(self).is_simple)
        form = choose_form(inner, host.is_simple, frames_as)
        arguments = {**inner_args, **read_secrets()}
        arguments |= frame_count(inner, inner_args, self._top_k)
        self._inner: lmms = host(**arguments)
        self.is_simple = host.is_simple
        self.task_dict = KeyedTasks()
        batch_size = int(inner_args.get("batch_size") or 1)
        self._chunk_size = _BATCHES_PER_CALL * batch_size
        self._show = Show(form, with_times=timestamps, num_clips=max(32, 4 * batch_size))
        if form == "video_list":
            tell_true_times(host)
        self._tasks_own: dict[str, Callable[..., Any]] = {}
        identity = [inner, *identify(arguments), form, str(timestamps)]
        self._journal_identity = [*identity, self._selections.sha256]
        self._seconds, self._num_asked = 0.0, 0
        self._journal_folder = None if journal is None else Path(str(journal))

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets what lmms-eval tells a model from outside on the inner model as well."""
        super().__setattr__(name, value)
        inner = self.__dict__.get("_inner")
        if inner is not None and name in _SHARED:
            setattr(inner, name, value)

    def __getattr__(self, name: str) -> Any:
        """Everything else, such as `device` or `tokenizer_name`, is the inner model's."""
        if name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)

    @property
    def rank(self) -> int:
        """Number of this process, as the inner model knows it."""
        return self._inner.rank

    @property
    def world_size(self) -> int:
        """How many processes there are, as the inner model knows it."""
        return self._inner.world_size

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Hands lmms-eval's hook on."""
        self._inner.set_cache_hook(cache_hook)

    def clean(self) -> None:
        """Frees the inner model."""
        self._inner.clean()

    def generate_until(self, requests: list[Instance]) -> list[Any]:
        """Answers in text; written down as they come, if there is a journal."""
        asked = [i for i, r in enumerate(requests) if _document(r) not in self._left_out]
        answers: list[Any] = [""] * len(requests)
        given = self._answer([requests[i] for i in asked])
        for i, answer in zip(asked, given, strict=True):
            answers[i] = answer
        return answers

    def _answer(self, requests: list[Instance]) -> list[Any]:
        if self._journal_folder is None:
            return self._delegate("generate_until", requests)
        self._check(requests)
        # lmms-eval's number of this process: the host's own may count one machine's only
        journal = Journal(self._journal_folder, self._rank, self._journal_identity)
        keys = journal.keys_of([*_document(r), r.args[0], _settings(r)] for r in requests)
        answers: list[Any] = [journal.find(key) for key in keys]
        unanswered = [i for i, answer in enumerate(answers) if answer is None]
        for start in range(0, len(unanswered), self._chunk_size):
            chunk = unanswered[start : start + self._chunk_size]
            given = self._ask("generate_until", [requests[i] for i in chunk])
            for i, answer in zip(chunk, given, strict=True):
                answers[i] = answer
                journal.add(keys[i], str(unwrap_generation_output(answer)[0]))
        self._log_cost()
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        """How likely each given answer is."""
        return self._delegate("loglikelihood", requests)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[Any]:
        """Answers of several rounds."""
        return self._delegate("generate_until_multi_round", requests)

    def _delegate(self, kind: str, requests: list[Instance]) -> list[Any]:
        self._refuse_left_out(kind, requests)
        self._check(requests)
        answers = self._ask(kind, requests)
        self._log_cost()
        return answers

    def _refuse_left_out(self, kind: str, requests: Sequence[Instance]) -> None:
        """Only an answer in text can be empty."""
        for request in requests:
            if _document(request) in self._left_out:
                where = format_key(_document(request))
                raise ItgError(f"{where} is left out, and there is no empty answer to {kind}")

    def _ask(self, kind: str, requests: list[Instance]) -> list[Any]:
        prepared = [self._prepare(request) for request in requests]
        started_s = time.perf_counter()
        answers = getattr(self._inner, kind)(prepared)
        self._seconds += time.perf_counter() - started_s
        self._num_asked += len(requests)
        return answers

    def _log_cost(self) -> None:
        """Tells what all asking cost since the last time.

        The one way in which a model can put figures into lmms-eval's results, as means over calls:
        so there is one call for all questions.
        """
        if self._num_asked:
            log_metrics(
                0.0, 0, 0.0, {"itg_seconds": self._seconds, "itg_questions": self._num_asked}
            )
        self._seconds, self._num_asked = 0.0, 0

    def _check(self, requests: Sequence[Instance]) -> None:
        """Finds out before anything is asked what has no selection, or one for another question."""
        without: set[Key] = set()
        for request in requests:
            task, split, doc_id = key = _document(request)
            found = self._selections.get(key)
            if found is None:
                without.add(key)
            else:
                self._selections.find(
                    document_of(key, self.task_dict[task][split][doc_id], found.video)
                )
        if without:
            said = (
                f"{len(without)} of {len(requests)} documents have no selection in "
                f"{self._selection_file}, the first is {format_key(min(without))}"
            )
            if not self._shows_uniform:
                raise ItgError(f"{said}; select frames for them, or pass missing=uniform")
            logger.warning("%s; they are shown evenly spaced frames", said)

    def _prepare(self, request: Instance) -> Instance:
        """The same request with our callable in place of the task's, nothing shared with it."""
        prepared = copy.copy(request)
        args: list[Any] = [
            copy.deepcopy(arg) if isinstance(arg, dict) else arg for arg in request.args
        ]
        task, split, doc_id = key = _document(request)
        place = 2 if self.is_simple else 1
        self._tasks_own[task] = args[place]
        args[place] = self._visuals if self.is_simple else self._messages
        if self.is_simple and self._show.form == "images":
            args[0] = self._show.to_text(self._times_s(key, self.task_dict[task][split][doc_id]))
            args[0] += request.args[0]
        prepared.arguments = tuple(args)
        prepared.metadata = dict(request.metadata)
        if self._show.form == "pil_video":
            prepared.metadata |= {"task_type": "video", "sample_frames": self._top_k}
        return prepared

    def _visuals(self, row: KeyedRow) -> list[Any]:
        """Stands in for a task's `doc_to_visual`, whichever task the row is of."""
        visuals = self._tasks_own[row.key[0]](row)
        shown: list[Any] = []
        for visual in visuals:
            path = video_path(visual)
            shown += [visual] if path is None else self._show.to_visuals(self._frames(row, path))
        _require_one_video(row.key, [v for v in visuals if video_path(v)])
        return shown

    def _messages(self, row: KeyedRow, **round_kwargs: Any) -> Any:
        """Stands in for a task's `doc_to_messages`, whichever task the row is of."""
        given = self._tasks_own[row.key[0]](row, **round_kwargs)
        if isinstance(given, tuple):  # one round of several: messages, and how it goes on
            return (given[0] and self._exchange(row, given[0])[0], *given[1:])
        shown, videos = self._exchange(row, given)
        _require_one_video(row.key, videos)
        return shown

    def _exchange(
        self, row: KeyedRow, messages: Sequence[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Puts frames in place of videos, and says in place of which."""
        videos: list[str] = []
        shown: list[dict[str, Any]] = []
        for message in messages:
            contents: list[Any] = []
            for content in message["content"]:
                is_media = isinstance(content, dict) and content.get("type") == "video"
                path = video_path(content) if is_media else None
                if path is None:
                    contents.append(content)
                else:
                    videos.append(path)
                    contents += self._show.to_contents(self._frames(row, path))
            is_text = isinstance(message["content"], str)
            shown.append(message if is_text else {**message, "content": contents})
        return shown, videos

    def _frames(self, row: KeyedRow, video: str) -> Frames:
        chosen = self._selections.find(document_of(row.key, row, video))
        if chosen is not None:
            return read_frames(video, chosen.source_idx)
        return read_frames(video, uniform_source_idx(video, self._top_k))

    def _times_s(self, key: Key, row: KeyedRow) -> tuple[float, ...]:
        chosen = self._selections.get(key)
        if chosen is not None:
            return chosen.time_s
        (video,) = (p for p in map(video_path, self._tasks_own[key[0]](row)) if p)
        return self._frames(row, video).times_s


class SimpleITG(ITG):
    """The same for `--force_simple`: the host's simple class, where it has one."""

    is_simple = True


class Shadow(ITG):
    """Stands under the id of the host model itself, so that tasks keep its prompts."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(inner=os.environ[SHADOW_VARIABLE], **kwargs)


class SimpleShadow(Shadow):
    """The same for the host's simple class."""

    is_simple = True


def _load_selections(path: str, frames_sha: str | None) -> Selections:
    selections = Selections.load(path)
    if not selections:
        raise ItgError(f"{path}: holds no selection")
    if frames_sha is None:
        raise ItgError(
            f"frames_sha is missing: add frames_sha={selections.sha256} to the model arguments, so "
            "that no cache of lmms-eval answers from other frames"
        )
    if str(frames_sha) != selections.sha256:
        raise ItgError(
            f"{path}: frames_sha must be the hash of what it holds, {selections.sha256}, got "
            f"{frames_sha}: the file has changed since"
        )
    return selections


def _host_class(host: str, *, force_simple: bool) -> type[lmms]:
    """The host's class as lmms-eval or a plugin has it, even while its id is shadowed."""
    registries = [MODEL_REGISTRY_V2, ModelRegistryV2()]
    for manifest in builtin_manifests():
        registries[1].register_manifest(manifest)
    for registry in registries:
        try:
            found = registry.get_model_class(host, force_simple)
        except (ValueError, ImportError) as error:
            raise ItgError(f"inner={host}: {error}") from error
        if not issubclass(found, ITG):
            return found
    raise ItgError(f"inner must be a host model, got {host!r}")


def _document(request: Instance) -> Key:
    doc_id, task, split = list(request.args)[-3:]
    return task, split, int(doc_id)


def _settings(request: Instance) -> list[Any]:
    """How the host is to generate; sampling settings change answers."""
    return [arg for arg in request.args if isinstance(arg, dict)]


def _require_one_video(key: Key, videos: Sequence[Any]) -> None:
    if len(videos) != 1:
        raise ItgError(
            f"{format_key(key)}: frames can only be put in place of one video file, the task "
            f"shows {len(videos)}"
        )
