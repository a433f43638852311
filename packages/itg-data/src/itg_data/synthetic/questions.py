"""Questions about a script. Which frames answer them follows from the script by predicate.

Every event that matches counts, so the labels are exact whatever was drawn.
"""

from collections.abc import Callable, Sequence

from itg_data.records import GroundingRecord, Provenance, QuestionType, TimeSpan
from itg_data.synthetic.script import (
    GENERATOR_VERSION,
    MOTIONS,
    Combination,
    Event,
    Script,
    Split,
    SyntheticConfig,
    generator,
)

VERBS = {motion: "stays still" if motion == "still" else f"moves {motion}" for motion in MOTIONS}
"""How questions, answers and captions word a motion."""
_NO_CLUE_QUESTIONS = (
    ("What is this video about?", "Coloured shapes that come, move and go."),
    ("Describe the video as a whole.", "Coloured shapes come, move and go one after another."),
    ("What is the atmosphere of the video?", "Plain and abstract."),
    ("Give this video a title.", "Shapes passing by"),
)


def ask_questions(
    config: SyntheticConfig, split: Split, number: int, script: Script, video: str
) -> list[GroundingRecord]:
    """Asks about a script: up to two questions per type with clues, one without.

    Args:
        config: Its seed decides what is asked.
        split: Goes into the records.
        number: The video's number within its split.
        script: What the video shows.
        video: The file's path relative to the set's root; goes into the records.
    """
    rng = generator(config, split, number, stage=1)
    asked: list[tuple[QuestionType, str, str, tuple[TimeSpan, ...]]] = []
    for question_type, phrase in _PHRASES.items():
        # keyed by the question: two events may give rise to the same one
        found: dict[str, list[Event]] = {
            phrase(event.shows): _matching(script, event.shows, question_type)
            for event in script.events
        }
        order: list[int] = rng.permutation(len(found)).tolist()
        questions = [list(found)[i] for i in order]
        # rare answers first: a question that half of the video answers tells little apart
        questions.sort(key=lambda question: len(found[question]))
        for question in questions[:2]:
            events = found[question]
            spans = tuple(event.span for event in events)
            asked.append((question_type, question, _answer(question_type, events), spans))
    question, answer = _NO_CLUE_QUESTIONS[rng.integers(len(_NO_CLUE_QUESTIONS))]
    whole = TimeSpan(start_s=0.0, end_s=float(script.duration_s))
    asked.append(("no_clue", question, answer, (whole,)))
    return [
        GroundingRecord(
            id=f"{split}-{number:05d}-{i}",
            video=video,
            question=question,
            answer=answer,
            question_type=question_type,
            spans=spans,
            split=split,
            provenance=Provenance(annotator=GENERATOR_VERSION, seed=config.seed),
        )
        for i, (question_type, question, answer, spans) in enumerate(asked)
    ]


_PHRASES: dict[QuestionType, Callable[[Combination], str]] = {
    "semantic": lambda shows: f"What does the {shows.colour} {shows.shape} do?",
    "motion": lambda shows: f"Which object {VERBS[shows.motion]}?",
    "semantic_motion": lambda shows: (
        f"How often is there a {shows.colour} {shows.shape} that {VERBS[shows.motion]}?"
    ),
}


def _answer(question_type: QuestionType, events: Sequence[Event]) -> str:
    if question_type == "semantic":
        return "It " + ", then ".join(VERBS[event.shows.motion] for event in events)
    if question_type == "motion":
        return "The " + ", then the ".join(
            f"{event.shows.colour} {event.shows.shape}" for event in events
        )
    return "Once" if len(events) == 1 else f"{len(events)} times"


def _matching(script: Script, shows: Combination, question_type: QuestionType) -> list[Event]:
    def matches(other: Combination) -> bool:
        same_object = (other.colour, other.shape) == (shows.colour, shows.shape)
        same_motion = other.motion == shows.motion
        if question_type == "semantic":
            return same_object
        return same_motion and (question_type == "motion" or same_object)

    return [event for event in script.events if matches(event.shows)]
