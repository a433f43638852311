"""How well a grounder finds the relevant frames of held-out videos, beside two that do not look.

`uniform` takes frames at even distances and has no ranking, so no average precision; `random` ranks
by chance, several times over. Values are means over questions.
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from itg_data.metrics import average_precision, num_selected, recall
from itg_data.progress import Advance
from itg_model.model import FrameGroundingModel
from itg_model.policies import select_frames

from itg_train.dataset import VideoDataset, VideoSample

SHARES = (0.05, 0.1, 0.2)
"""Shares of the sampled frames that are selected."""

NUM_RANDOM_DRAWS = 20

Values = dict[str, list[float]]


def evaluate(
    model: FrameGroundingModel, dataset: VideoDataset, seed: int, advance: Advance
) -> dict[str, dict[str, dict[str, float | int]]]:
    """Scores every question of a split.

    Args:
        model: The grounder; put in eval mode.
        dataset: The split.
        seed: Of the random ranking.
        advance: Told how many videos are done.

    Returns:
        Question type (and `all`) -> method -> measure -> value; measures are
        `average_precision`, `recall@5%`, `recall@10%`, `recall@20%` and `num_questions`.
    """
    model.eval()
    rng = np.random.default_rng(seed)
    values: dict[str, dict[str, Values]] = {}
    for place in range(len(dataset)):
        sample = dataset.load(place)
        for scores, record, label in zip(
            _score_questions(model, sample), sample.records, sample.labels, strict=True
        ):
            relevant = label.numpy().astype(bool)
            if not relevant.any():
                continue
            for method, measured in _measure(scores, relevant, rng):
                for question_type in ("all", record.question_type or "untyped"):
                    of_method = values.setdefault(question_type, {}).setdefault(method, {})
                    for name, value in measured.items():
                        of_method.setdefault(name, []).append(value)
        advance(place + 1, "")
    return {
        question_type: {method: _average(lists) for method, lists in of_type.items()}
        for question_type, of_type in values.items()
    }


@torch.inference_mode()
def _score_questions(
    model: FrameGroundingModel, sample: VideoSample
) -> list[npt.NDArray[np.float32]]:
    features = model.encode_frames(sample.pixels.to(model.device, model.head.weight.dtype))
    logits = model.score_batch([features] * len(sample.input_ids), sample.input_ids)
    return [row.cpu().numpy() for row in logits]


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


def format_table(report: dict[str, dict[str, dict[str, float | int]]]) -> str:
    """Lays the report out for a terminal, `all` last."""
    measures = ["average_precision", *(f"recall@{share:.0%}" for share in SHARES)]
    lines = [f"{'questions':<18}{'n':>5}  {'method':<10}" + "".join(f"{m:>19}" for m in measures)]
    for question_type in sorted(report, key=lambda name: (name == "all", name)):
        for method, means in report[question_type].items():
            cells = [f"{means[m]:.3f}" if m in means else "-" for m in measures]
            head = f"{question_type:<18}{means['num_questions']:>5}  {method:<10}"
            lines.append(head + "".join(f"{cell:>19}" for cell in cells))
    return "\n".join(lines)
