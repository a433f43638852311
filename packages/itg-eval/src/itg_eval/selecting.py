"""Stage 2: the frames of each document, chosen by their scores through any policy of the field.

`itg_model.policies` chooses; here it is given what else a policy may want to see: the frames'
times, and the embeddings where the scorer left some.
"""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from itg_data.errors import ItgError, RecordError
from itg_data.jsonl import read_jsonl
from itg_model.policies import check_policy, describe_policy, policy_info, select_frames
from itg_model.policies.registry import Number

from itg_eval.records import DocumentScores, DocumentSelection, Key, format_key
from itg_eval.scores import EMBEDDINGS

logger = logging.getLogger(__name__)

_LEAST_SPREAD = 3.0
"""Temperatures from the worst score of a video to its best: the best frame is then 20 times as
likely as the worst. Probabilities span 1.25 of them at the most at q-frame's own temperature."""

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

    Logs a warning if frames are drawn by their scores and these hardly matter.

    Raises:
        RecordError: The file is not one of scores, or a document is there twice.
        ItgError: The policy needs embeddings, and there are none, or none that fit.
    """
    seen: dict[Key, float | None] = {}
    for scores in read_jsonl(path, DocumentScores):
        if scores.key in seen:
            raise RecordError(f"{path}: {format_key(scores.key)} is there twice")
        seen[scores.key] = _spread(scores, policy, params)
        yield select_document(scores, policy, top_k, params, Path(path).parent / EMBEDDINGS)
    _warn_of_even_draws(path, [spread for spread in seen.values() if spread is not None])


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
    seed = _seed_of(scores.key, policy, params)
    drawn = params if seed is None else {**params, "seed": seed}
    try:
        places: list[int] = select_frames(values, top_k, policy, **drawn, **offered).tolist()
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
        seed=seed,
    )


def _seed_of(key: Key, policy: str, params: Mapping[str, float]) -> int | None:
    """A seed for a document's own draw: with one for all, videos of a length draw the same frames.

    Returns:
        None for a policy that draws nothing.
    """
    seed = _numbers(policy, params).get("seed")
    if seed is None:
        return None
    text = json.dumps([seed, *key])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _spread(scores: DocumentScores, policy: str, params: Mapping[str, float]) -> float | None:
    """How far scores lie apart, in temperatures; None for a policy that has none."""
    tau = _numbers(policy, params).get("tau")
    finite = [score for score in scores.scored.scores if math.isfinite(score)]
    return None if tau is None or len(finite) < 2 else (max(finite) - min(finite)) / tau


def _numbers(policy: str, params: Mapping[str, float]) -> dict[str, float]:
    """The policy's numbers, those given and the defaults of the others."""
    known = (p for p in policy_info(policy).parameters if isinstance(p, Number))
    return {p.name: params.get(p.name, p.default) for p in known}


def _warn_of_even_draws(path: str | Path, spreads: list[float]) -> None:
    if spreads and (middle := float(np.median(spreads))) < _LEAST_SPREAD:
        logger.warning(
            "%s: the scores of a video span %.2g times tau (median over questions), so frames are "
            "drawn nearly at random; choose a smaller tau with --policy-param tau=...",
            path,
            middle,
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
