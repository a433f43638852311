"""What is in a set, counted in one pass: types, clips, labels, durations, drops."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, get_args

from itg_data.annotate.records import DroppedSample
from itg_data.records import QuestionType
from itg_data.sets.folder import Sample, SetFolder


@dataclass(kw_only=True, slots=True)
class Distribution:
    """Numbers, counted by value."""

    counts: Counter[float] = field(default_factory=Counter[float])

    def add(self, value: float) -> None:
        """Counts one."""
        self.counts[value] += 1

    def quantile(self, share: float) -> float:
        """Gives the smallest value that at least this share of the numbers does not exceed."""
        wanted, seen = share * self.counts.total(), 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= wanted:
                return value
        return math.nan

    def summarise(self) -> dict[str, float] | None:
        """Gives number, mean, least, quartiles and greatest; None where nothing was counted."""
        if not self.counts:
            return None
        total = sum(value * count for value, count in self.counts.items())
        return {
            "n": self.counts.total(),
            "mean": round(total / self.counts.total(), 3),
            "min": min(self.counts),
            "p25": self.quantile(0.25),
            "median": self.quantile(0.5),
            "p75": self.quantile(0.75),
            "max": max(self.counts),
        }


@dataclass(kw_only=True, slots=True)
class SetStatistics:
    """What `itg-data stats` tells of a set."""

    num_samples: int = 0
    types: Counter[str] = field(default_factory=Counter[str])
    splits: Counter[str] = field(default_factory=Counter[str])
    annotators: Counter[str] = field(default_factory=Counter[str])
    prompts: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """Records by stage and hash of the prompt."""
    dropped: Counter[str] = field(default_factory=Counter[str])
    questions_of: Counter[str] = field(default_factory=Counter[str])
    """Questions by video."""
    duration_of: dict[str, float] = field(default_factory=dict[str, float])
    """Seconds by video, where the set knows them."""
    spans: Distribution = field(default_factory=Distribution)
    labelled_s: Distribution = field(default_factory=Distribution)
    labelled_share: dict[str, Distribution] = field(default_factory=dict[str, Distribution])
    """By type: labelled share of the video, in hundredths."""
    clips: Distribution = field(default_factory=Distribution)
    frames: Distribution = field(default_factory=Distribution)
    num_refused: int = 0
    """Frames that localisation kept and the check refused."""
    num_checked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, sample: Sample) -> None:
        """Counts one sample."""
        record = sample.record
        self.num_samples += 1
        self.types[record.question_type or "unknown"] += 1
        self.splits[record.split or "none"] += 1
        self.annotators[record.provenance.annotator] += 1
        self.questions_of[record.video] += 1
        self.spans.add(len(record.spans))
        labelled_s = sum(span.end_s - span.start_s for span in record.spans)
        self.labelled_s.add(round(labelled_s, 3))
        if sample.annotation is None:
            return
        annotation = sample.annotation
        self.prompts.update((prompt.stage, prompt.sha256) for prompt in annotation.prompts)
        self.duration_of[record.video] = annotation.duration_s
        share = self.labelled_share.setdefault(annotation.question_type, Distribution())
        share.add(round(labelled_s / annotation.duration_s, 2))
        self.clips.add(len(annotation.clips))
        self.frames.add(len(annotation.label_s))
        verdicts = [f.relevant for f in annotation.frames if f.relevant is not None]
        self.num_checked += len(verdicts)
        self.num_refused += verdicts.count(False)
        self.prompt_tokens += annotation.tokens.prompt_tokens
        self.completion_tokens += annotation.tokens.completion_tokens

    def add_dropped(self, sample: DroppedSample) -> None:
        """Counts one QA pair that did not become a record."""
        self.dropped[sample.reason] += 1

    @property
    def type_shares(self) -> dict[str, float]:
        """Share of each question type, those that are defined first."""
        names = [*get_args(QuestionType), *(["unknown"] if self.types["unknown"] else [])]
        return {name: self.types[name] / max(1, self.num_samples) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Gives all figures as one JSON object."""
        durations, questions = Distribution(), Distribution()
        for duration_s in self.duration_of.values():
            durations.add(round(duration_s, 1))
        for count in self.questions_of.values():
            questions.add(count)
        shares = self.labelled_share
        return {
            "num_samples": self.num_samples,
            "num_videos": len(self.questions_of),
            "num_dropped": self.dropped.total(),
            "types": {name: self.types[name] for name in self.type_shares},
            "splits": dict(sorted(self.splits.items())),
            "annotators": dict(sorted(self.annotators.items())),
            "prompts": [
                {"stage": stage, "sha256": sha256, "num_samples": count}
                for (stage, sha256), count in sorted(self.prompts.items())
            ],
            "dropped": dict(self.dropped.most_common()),
            "duration_s": durations.summarise(),
            "questions_per_video": questions.summarise(),
            "clips": self.clips.summarise(),
            "frames": self.frames.summarise(),
            "spans": self.spans.summarise(),
            "labelled_s": self.labelled_s.summarise(),
            "labelled_share": {name: shares[name].summarise() for name in sorted(shares)},
            "num_checked_frames": self.num_checked,
            "num_refused_frames": self.num_refused,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }


def measure_set(folder: SetFolder) -> SetStatistics:
    """Counts a set.

    Raises:
        RecordError: The folder holds no set, or a line of it cannot be read.
    """
    statistics = SetStatistics()
    for sample in folder.iterate_samples():
        statistics.add(sample)
    for dropped in folder.iterate_dropped():
        statistics.add_dropped(dropped)
    return statistics
