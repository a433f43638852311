"""How well a grounder finds the relevant frames of held-out videos, beside two that do not look.

`uniform` takes frames at even distances and has no ranking, so no average precision; `random` ranks
by chance, several times over. Values are means over questions. The processes share the videos.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

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
from itg_train.encoding import encode_samples
from itg_train.loader import Pass

logger = logging.getLogger(__name__)

SHARES = (0.05, 0.1, 0.2)
"""Shares of the sampled frames that are selected."""

NUM_RANDOM_DRAWS = 20

Measures = dict[str, dict[str, float]]
"""Method -> measure -> value. Measures are `average_precision` and recall at each of `SHARES`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionResult:
    """How one held-out question went."""

    record_id: str
    video: str
    question: str
    question_type: str
    """Empty for a conversation."""
    measures: Measures


Summary = dict[str, dict[str, dict[str, float | int]]]
"""Question type (and `all`) -> method -> measure -> mean."""


def evaluate(
    model: FrameGroundingModel,
    dataset: VideoDataset,
    seed: int,
    advance: Advance,
    frame_chunk: int = DEFAULT_FRAME_CHUNK,
    places: Sequence[int] | None = None,
) -> list[QuestionResult]:
    """Scores every question of a split, or of some of its groups.

    Args:
        model: The grounder; in eval mode while this lasts.
        dataset: The split.
        seed: Of the random rankings, with each question's own place.
        advance: Told how many groups are done.
        frame_chunk: Frames that pass the tower at once.
        places: Which groups; None takes all.

    Returns:
        A result per question to which some frame is relevant; `summarize` makes means of them.
    """
    was_training = model.training
    model.eval()
    results: list[QuestionResult] = []
    for done, place in enumerate(range(len(dataset)) if places is None else places, start=1):
        try:
            sample = dataset.load(place)
        except VideoError as error:
            logger.warning("not measured: %s", error)
            continue
        scores = _score_questions(model, sample, frame_chunk)
        results += _measure_questions(sample, scores, [seed, place])
        advance(done, "")
    model.train(was_training)
    return results


@torch.inference_mode()
def evaluate_chat(
    module: ChatLoss, dataset: VideoDataset, advance: Advance, places: Sequence[int]
) -> list[QuestionResult]:
    """The loss of every conversation of some groups, in the form of `evaluate`."""
    was_training = module.training
    module.eval()
    results: list[QuestionResult] = []
    for done, place in enumerate(places, start=1):
        for question in range(len(dataset.groups[place].records)):
            try:
                sample = dataset.load(place, [question])
            except VideoError as error:
                logger.warning("not measured: %s", error)
                break
            (record,) = sample.records
            loss = float(module(Pass(samples=(sample,))))
            result = QuestionResult(
                record_id=record.id,
                video=record.video,
                question=record.question,
                question_type="",
                measures={"chat": {"loss": loss}},
            )
            results.append(result)
        advance(done, "")
    module.train(was_training)
    return results


def summarize(results: Iterable[QuestionResult]) -> Summary:
    """Makes means over questions, of each type and of all, with `num_questions` beside them."""
    gathered: dict[str, dict[str, list[dict[str, float]]]] = {}
    for result in results:
        for question_type in filter(None, ("all", result.question_type)):
            of_type = gathered.setdefault(question_type, {})
            for method, measured in result.measures.items():
                of_type.setdefault(method, []).append(measured)
    return {
        question_type: {method: average(values) for method, values in of_type.items()}
        for question_type, of_type in gathered.items()
    }


def average(values: Sequence[dict[str, float]]) -> dict[str, float | int]:
    """Makes means of each measure, with `num_questions` beside them."""
    means: dict[str, float | int] = {
        name: float(np.mean([of_question[name] for of_question in values])) for name in values[0]
    }
    return means | {"num_questions": len(values)}


def _measure_questions(
    sample: VideoSample, scores: Sequence[npt.NDArray[np.float32]], seed: list[int]
) -> Iterator[QuestionResult]:
    for number, (record, label) in enumerate(zip(sample.records, sample.labels, strict=True)):
        relevant = label.numpy().astype(bool)
        if relevant.any():
            rng = np.random.default_rng([*seed, number])
            yield QuestionResult(
                record_id=record.id,
                video=record.video,
                question=record.question,
                question_type=record.question_type or "untyped",
                measures=dict(_measure(scores[number], relevant, rng)),
            )


@torch.inference_mode()
def _score_questions(
    model: FrameGroundingModel, sample: VideoSample, frame_chunk: int
) -> list[npt.NDArray[np.float32]]:
    features = encode_samples(model, [sample], frame_chunk)
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
