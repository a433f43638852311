"""How well a grounder finds the relevant frames of held-out videos, beside two that do not look.

`uniform` takes frames at even distances and has no ranking, so no average precision; `random` ranks
by chance, several times over. Values are means over questions. The processes share the videos.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from itg_data.errors import VideoError
from itg_data.metrics import average_precision, num_selected, recall
from itg_data.progress import Advance
from itg_model.model import DEFAULT_FRAME_CHUNK, FrameGroundingModel
from itg_model.policies import select_frames

from itg_train.chat_loss import ChatLoss
from itg_train.dataset import VideoDataset, VideoSample
from itg_train.encoding import encode_sample
from itg_train.loader import Pass

logger = logging.getLogger(__name__)

SHARES = (0.05, 0.1, 0.2)
"""Shares of the sampled frames that are selected."""

NUM_RANDOM_DRAWS = 20

Values = dict[str, list[float]]
"""Measure -> a value per question."""

Summary = dict[str, dict[str, dict[str, float | int]]]
"""Question type (and `all`) -> method -> measure -> mean."""


def evaluate(
    model: FrameGroundingModel,
    dataset: VideoDataset,
    seed: int,
    advance: Advance,
    frame_chunk: int = DEFAULT_FRAME_CHUNK,
    places: Sequence[int] | None = None,
) -> dict[str, dict[str, Values]]:
    """Scores every question of a split, or of some of its groups.

    Args:
        model: The grounder; in eval mode while this lasts.
        dataset: The split.
        seed: Of the random rankings, with each question's own place.
        advance: Told how many groups are done.
        frame_chunk: Frames that pass the tower at once.
        places: Which groups; None takes all.

    Returns:
        Question type (and `all`) -> method -> measure -> a value per question; `summarize` makes
        means of them. Measures are `average_precision`, `recall@5%`, `recall@10%` and
        `recall@20%`.
    """
    was_training = model.training
    model.eval()
    values: dict[str, dict[str, Values]] = {}
    for done, place in enumerate(range(len(dataset)) if places is None else places, start=1):
        try:
            sample = dataset.load(place)
        except VideoError as error:
            logger.warning("not measured: %s", error)
            continue
        scored = zip(
            _score_questions(model, sample, frame_chunk), sample.records, sample.labels, strict=True
        )
        for question, (scores, record, label) in enumerate(scored):
            relevant = label.numpy().astype(bool)
            if not relevant.any():
                continue
            rng = np.random.default_rng([seed, place, question])
            for method, measured in _measure(scores, relevant, rng):
                for question_type in ("all", record.question_type or "untyped"):
                    of_method = values.setdefault(question_type, {}).setdefault(method, {})
                    for name, value in measured.items():
                        of_method.setdefault(name, []).append(value)
        advance(done, "")
    model.train(was_training)
    return values


@torch.inference_mode()
def evaluate_chat(
    module: ChatLoss, dataset: VideoDataset, advance: Advance, places: Sequence[int]
) -> dict[str, dict[str, Values]]:
    """The loss of every conversation of some groups, in the form of `evaluate`."""
    was_training = module.training
    module.eval()
    values: Values = {}
    for done, place in enumerate(places, start=1):
        for question in range(len(dataset.groups[place].records)):
            try:
                sample = dataset.load(place, [question])
            except VideoError as error:
                logger.warning("not measured: %s", error)
                break
            values.setdefault("loss", []).append(float(module(Pass(samples=(sample,)))))
        advance(done, "")
    module.train(was_training)
    return {"all": {"chat": values}} if values else {}


def summarize(
    parts: Iterable[dict[str, dict[str, Values]]],
) -> Summary:
    """Makes means of what one process or several measured, with `num_questions` beside them."""
    merged: dict[str, dict[str, Values]] = {}
    for part in parts:
        for question_type, of_type in part.items():
            for method, measured in of_type.items():
                target = merged.setdefault(question_type, {}).setdefault(method, {})
                for name, values in measured.items():
                    target.setdefault(name, []).extend(values)
    return {
        question_type: {method: _average(lists) for method, lists in of_type.items()}
        for question_type, of_type in merged.items()
    }


@torch.inference_mode()
def _score_questions(
    model: FrameGroundingModel, sample: VideoSample, frame_chunk: int
) -> list[npt.NDArray[np.float32]]:
    features = encode_sample(model, sample, frame_chunk)
    # one by one: a video's questions together may be more than fits
    pairs = zip(features, sample.input_ids, strict=True)
    return [model.score(item, ids).float().cpu().numpy() for item, ids in pairs]


def _measure(
    scores: npt.NDArray[np.float32], relevant: npt.NDArray[np.bool_], rng: np.random.Generator
) -> Iterable[tuple[str, dict[str, float]]]:
    def recalls(select: Callable[[int], npt.ArrayLike]) -> dict[str, float]:
        return {
            f"recall@{share:.0%}": recall(select(num_selected(len(relevant), share)), relevant)
            for share in SHARES
        }

    precision = {"average_precision": average_precision(scores, relevant)}
    yield "grounder", precision | recalls(lambda k: select_frames(scores, k, policy="top-k"))
    yield "uniform", recalls(lambda k: select_frames(scores, k, policy="uniform"))
    draws = []
    for ranking in rng.permuted(np.tile(np.arange(len(relevant)), (NUM_RANDOM_DRAWS, 1)), axis=1):
        drawn = {"average_precision": average_precision(-np.argsort(ranking), relevant)}
        draws.append(drawn | recalls(lambda k, ranking=ranking: ranking[:k]))
    yield "random", {name: float(np.mean([d[name] for d in draws])) for name in draws[0]}


def _average(lists: Values) -> dict[str, float | int]:
    means: dict[str, float | int] = {k: float(np.mean(v)) for k, v in lists.items()}
    return means | {"num_questions": len(next(iter(lists.values())))}


def format_table(report: Summary) -> str:
    """Lays the report out for a terminal, `all` last."""
    measures = ["average_precision", *(f"recall@{share:.0%}" for share in SHARES)]
    lines = [f"{'questions':<18}{'n':>5}  {'method':<10}" + "".join(f"{m:>19}" for m in measures)]
    for question_type in sorted(report, key=lambda name: (name == "all", name)):
        for method, means in report[question_type].items():
            cells = [f"{means[m]:.3f}" if m in means else "-" for m in measures]
            head = f"{question_type:<18}{means['num_questions']:>5}  {method:<10}"
            lines.append(head + "".join(f"{cell:>19}" for cell in cells))
    return "\n".join(lines)
