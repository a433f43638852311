"""`itg_scripted` on disk: scripted videos, multiple choice about them, and lmms-eval's definition.

Every question asks what one object does. It is on screen for 3 to 5 seconds of the whole video and
for no other reason, so the answer is nowhere but in these frames, and to see a movement takes two
of them. Eight evenly spaced frames of a minute rarely hold two; a selector that finds the object
does. The videos are held-out ones: combinations of colour, shape and motion that neither itg-train
nor the reader has met.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from itg_data.errors import ItgError
from itg_data.files import write_atomic
from itg_data.jsonl import write_jsonl
from itg_data.records import GroundingRecord
from itg_data.synthetic import SyntheticConfig, load_or_write_dataset
from itg_data.synthetic.script import MOTIONS

TASK = "itg_scripted"
GROUPS = {"short": 48, "long": 120}
"""Names of the duration groups, and how long their videos are, in seconds."""

_OPTIONS = tuple(f"It {'stays still' if m == 'still' else f'moves {m}'}" for m in MOTIONS)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptedConfig:
    """How large the benchmark is."""

    num_videos: int = 24
    """Videos of each of the two lengths."""

    seed: int = 1
    """Everything drawn follows from it; itg-train's own held-out videos are those of seed 0."""

    def __post_init__(self) -> None:
        if self.num_videos < 1:
            raise ValueError(f"scripted.num_videos must be >= 1, got {self.num_videos}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptedQuestion:
    """A row of the benchmark's data."""

    question: str
    options: tuple[str, ...]
    answer: str
    """Letter of the right option."""
    video: str
    duration_group: str
    start_s: float
    """The object is on screen in `[start_s, end_s)` and at no other time."""
    end_s: float


def write_benchmark(
    folder: Path,
    config: ScriptedConfig,
    *,
    num_workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes the benchmark, or what is missing of it, into a folder for `--include_path`.

    Args:
        folder: Where to; made if need be.
        config: How large.
        num_workers: Processes that render.
        progress: Called with (videos done, videos in all).

    Returns:
        How many questions there are.

    Raises:
        ItgError: The folder holds another benchmark.
    """
    folder.mkdir(parents=True, exist_ok=True)
    questions: list[ScriptedQuestion] = []
    for place, (group, duration_s) in enumerate(GROUPS.items()):
        synthetic = SyntheticConfig(
            num_train=0, num_heldout=config.num_videos, seed=config.seed, duration_s=duration_s
        )

        def show(done: int, _: int, before: int = place * config.num_videos) -> None:
            if progress is not None:
                progress(before + done, len(GROUPS) * config.num_videos)

        try:
            records = load_or_write_dataset(
                folder / group, synthetic, num_workers=num_workers, progress=show
            )
        except FileExistsError as error:
            raise ItgError(str(error)) from None
        questions += _ask(group, records, np.random.default_rng([config.seed, place]))
    write_jsonl(folder / "questions.jsonl", questions)
    definition = files("itg_eval.scripted").joinpath("task")
    for name in (f"{TASK}.py", f"{TASK}.yaml"):
        write_atomic(folder / name, definition.joinpath(name).read_bytes())
    return len(questions)


def _ask(
    group: str, records: list[GroundingRecord], rng: np.random.Generator
) -> Iterator[ScriptedQuestion]:
    places = np.arange(len(_OPTIONS))
    for record in records:
        # an object that comes twice may do two things
        if record.question_type != "semantic" or len(record.spans) != 1:
            continue
        options = [_OPTIONS[int(i)] for i in rng.permutation(places)]
        (span,) = record.spans
        yield ScriptedQuestion(
            question=record.question,
            options=tuple(options),
            answer="ABCDE"[options.index(str(record.answer))],
            video=f"{group}/{record.video}",
            duration_group=group,
            **asdict(span),
        )
