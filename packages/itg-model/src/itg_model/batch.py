"""`itg-select` for many questions: a line of JSON each, in the order of the videos.

Started by torchrun, the processes deal out the videos among their GPUs.
"""

import os
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from itg_data.errors import to_one_line
from itg_data.progress import show_progress, tell_progress
from itg_data.records import FrameSelection
from torch.distributed.rendezvous import rendezvous

from itg_model.devices import resolve_device
from itg_model.grounder import FrameGrounder
from itg_model.journal import Journal, Share
from itg_model.many import FailedSelection
from itg_model.policies import describe_policy, parse_policy_params
from itg_model.questions import list_videos, read_questions

if TYPE_CHECKING:
    from itg_model.cli import Request


def run_many(request: "Request") -> tuple[str, int]:
    """Answers all questions of a request; returns what to say of it, and how many failed.

    Raises:
        ValueError: The questions or the results of an earlier run do not hold.
    """
    from itg_model.cli import load_grounder

    share = Share.from_environment()
    path = None if request.json == "-" else Path(request.json)
    if path is None and share.num_ranks > 1:
        raise ValueError("several processes need --json FILE: each writes one beside it")
    asked = _deal(_read(request), share)
    grounder = load_grounder(request, _pick_gpu(request.device, share))
    with closing(
        Journal(path, share, lambda found: _check_fit(found, request, grounder))
    ) as journal:
        todo = [pair for pair in asked if pair not in journal.done]
        num_failed = _answer(request, grounder, todo, journal, shows=share.rank == 0)
    summary = f"answered {len(todo) - num_failed} of {len(asked)} questions"
    if len(todo) < len(asked):
        summary += f"; {len(asked) - len(todo)} were answered before"
    if num_failed:
        summary += f"; {num_failed} failed, and the lines with an error say why"
    return summary, num_failed


def tell_others(*, waits: bool) -> None:
    """Tells torchrun's other processes that this one is done, and perhaps waits until all are.

    torchrun ends all its processes once one of them exits with anything but 0: a process that will
    has to wait, or one bad video would stop the rest. Other launchers have their own ways.
    """
    share = Share.from_environment()
    if share.num_ranks == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    num_done = f"itg-select/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/num-done"
    # where torchrun itself is gone, it ends nobody
    with suppress(dist.DistError):
        store = next(rendezvous("env://"))[0]
        store.add(num_done, 1)
        # not store.wait, which Ctrl-C does not interrupt
        while waits and store.add(num_done, 0) < share.num_ranks:
            time.sleep(0.5)


def _pick_gpu(device: str, share: Share) -> str | None:
    """The GPU that is this process's; None where `device` says all there is to say.

    Raises:
        ValueError: Nothing tells which.
    """
    if share.num_ranks == 1 or resolve_device(device) != torch.device("cuda"):
        return None
    if "LOCAL_RANK" not in os.environ:
        raise ValueError(
            "several processes need LOCAL_RANK in the environment, as torchrun sets it, to take a "
            "GPU each; or name one by --device cuda:N"
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


def _read(request: "Request") -> list[tuple[str, str]]:
    if request.questions is not None:
        pairs = read_questions(request.questions, request.video)
    else:
        assert request.video is not None  # the command line's check, as below
        assert request.question is not None
        pairs = [(video, request.question) for video in list_videos(request.video)]
    return [(str(video), question) for video, question in pairs]


def _deal(asked: list[tuple[str, str]], share: Share) -> list[tuple[str, str]]:
    """Every num_ranks-th video with all its questions."""
    place_of = {video: i for i, video in enumerate(dict.fromkeys(video for video, _ in asked))}
    return [pair for pair in asked if place_of[pair[0]] % share.num_ranks == share.rank]


def _check_fit(found: FrameSelection, request: "Request", grounder: FrameGrounder) -> None:
    wanted: dict[str, Any] = {
        "model": grounder.name,
        "sampling": request.to_sampling(grounder.max_frames).describe(),
        "policy": describe_policy(
            request.policy, parse_policy_params(request.policy, request.policy_param)
        ),
        "top_k": min(request.top_k, found.num_sampled),
    }
    for name, value in wanted.items():
        there = len(found.selected) if name == "top_k" else getattr(found, name)
        if there != value:
            raise ValueError(f"holds results with {name} {there}, but {value} is asked for")


def _answer(
    request: "Request",
    grounder: FrameGrounder,
    todo: list[tuple[str, str]],
    journal: Journal,
    *,
    shows: bool,
) -> int:
    """Writes a result to each question; returns how many failed."""
    results = grounder.select_many(
        todo,
        request.top_k,
        request.to_sampling(grounder.max_frames),
        request.policy,
        parse_policy_params(request.policy, request.policy_param),
    )
    num_failed = 0
    showing = show_progress("choosing frames", len(todo), unit="questions", quiet=not shows)
    with tell_progress("itg-select: "), showing as advance:
        for num_done, result in enumerate(results, 1):
            journal.write(result)
            if isinstance(result, FailedSelection):
                num_failed += 1
            advance(num_done, to_one_line(Path(result.video).name))
    return num_failed
