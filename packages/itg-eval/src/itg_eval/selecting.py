"""Stage 2: the frames of each document, chosen by their scores through any policy of the field.

`itg_model.policies` chooses; here it is given what else a policy may want to see: the frames'
times, and the embeddings where the scorer left some.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from itg_data.errors import ItgError, RecordError
from itg_data.jsonl import read_jsonl
from itg_model.policies import check_policy, describe_policy, policy_info, select_frames

from itg_eval.records import DocumentScores, DocumentSelection, format_key
from itg_eval.scores import EMBEDDINGS

OFFERED = frozenset({"times_s", "embeddings", "query_embedding"})
"""Arrays that documents' scores can give a policy."""


def check_request(policy: str, top_k: int, params: Mapping[str, float]) -> None:
    """Checks a request before files are read.

    Raises:
        ValueError: As `select_frames` raises, or the policy needs what scores of frames lack.
    """
    info = policy_info(policy)
    lacking = sorted(set(info.required) - OFFERED)
    if lacking:
        raise ValueError(
            f"policy {policy} needs {', '.join(lacking)}, which scores of frames do not have"
        )
    # stands for what comes with the scores, whose shape is checked when they are there
    stand_ins = {a: np.zeros((1, 1) if a == "embeddings" else 1) for a in info.required}
    check_policy(policy, top_k, {**params, **stand_ins})


def select_documents(
    path: str | Path, policy: str, top_k: int, params: Mapping[str, float]
) -> Iterator[DocumentSelection]:
    """Chooses frames for every document of a file of scores.

    Args:
        path: The file; embeddings are looked for in the folder beside it.
        policy: One of `itg_model.policies.policy_names()`.
        top_k: Frames to choose; all where fewer were scored.
        params: The policy's numbers by name.

    Raises:
        RecordError: The file is not one of scores, or a document is there twice.
        ItgError: The policy needs embeddings, and there are none, or none that fit.
    """
    seen: dict[Any, None] = {}
    for scores in read_jsonl(path, DocumentScores):
        if scores.key in seen:
            raise RecordError(f"{path}: {format_key(scores.key)} is there twice")
        seen[scores.key] = None
        yield select_document(scores, policy, top_k, params, Path(path).parent / EMBEDDINGS)


def select_document(
    scores: DocumentScores,
    policy: str,
    top_k: int,
    params: Mapping[str, float],
    embeddings: Path | None = None,
) -> DocumentSelection:
    """Chooses the frames of one document.

    Args:
        scores: May hold NaN for frames that could not be scored.
        policy: As in `select_documents`.
        top_k: Likewise.
        params: Likewise.
        embeddings: Folder of the frames' embeddings.
    """
    scored = scores.scored
    values = np.array(scored.scores)
    offered = _offer(scores, policy, embeddings)
    try:
        places: list[int] = select_frames(values, top_k, policy, **params, **offered).tolist()
    except ValueError as error:
        raise ItgError(f"{format_key(scores.key)}: {error}") from None
    return DocumentSelection(
        task=scores.task,
        split=scores.split,
        doc_id=scores.doc_id,
        video=scored.video,
        question_sha256=scores.question_sha256,
        scorer=scored.model,
        sampling=scored.sampling,
        policy=describe_policy(policy, params),
        top_k=top_k,
        fps=scores.fps,
        source_idx=tuple(scored.source_idx[i] for i in places),
        time_s=tuple(scored.time_s[i] for i in places),
        scores=tuple(s if math.isfinite(s := scored.scores[i]) else None for i in places),
    )


def _offer(scores: DocumentScores, policy: str, folder: Path | None) -> dict[str, Any]:
    """Gathers the arrays that the policy can use, of those there are."""
    info = policy_info(policy)
    offered: dict[str, Any] = {}
    if "times_s" in info.arrays:
        offered["times_s"] = scores.scored.time_s
    if scores.embeddings is not None and folder is not None:
        if "embeddings" in info.arrays:
            offered["embeddings"] = _load_embeddings(folder / scores.embeddings)
        if "query_embedding" in info.arrays:
            offered["query_embedding"] = scores.query_embedding
    lacking = sorted(set(info.required) - set(offered))
    if lacking:
        raise ItgError(
            f"policy {policy} needs {' and '.join(lacking)}, and {format_key(scores.key)} has "
            "none: score with --scorer text-image --save-embeddings"
        )
    return offered


def _load_embeddings(path: Path) -> npt.NDArray[Any]:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ItgError(f"{path}: no embeddings can be read: {error}") from None
