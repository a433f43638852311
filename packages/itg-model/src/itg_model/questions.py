"""What is asked of which video, from a file of questions and a file or folder of videos."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
"""Names that are taken for videos in a folder."""


def list_videos(path: Path) -> list[Path]:
    """The video itself, or the videos that lie directly in a folder, by name.

    A link that leads nowhere counts: that its video is gone should be said, not passed over.

    Raises:
        ValueError: There is no such file, or no video in the folder.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: no such file")
    named = (p for p in path.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)
    videos = sorted(p for p in named if p.is_file() or (p.is_symlink() and not p.exists()))
    if not videos:
        raise ValueError(f"{path}: holds no video ({', '.join(VIDEO_SUFFIXES)})")
    return videos


def read_questions(path: Path, videos: Path | None) -> list[tuple[Path, str]]:
    """Reads the pairs of a file of questions, those about one video side by side.

    Args:
        path: `.jsonl` with `question` and perhaps `video` in each object, `.csv` with these
            columns, or any other name: a question a line. Other fields and blank lines are
            passed over.
        videos: Where questions without a video are asked: of this file, or of every video in this
            folder. A named video is looked for in this folder, without one beside `path`.

    Raises:
        ValueError: The file cannot be read or a line does not hold; the message names it.
    """
    folder = videos if videos is not None and videos.is_dir() else path.parent
    everywhere: list[Path] | None = None
    asked: dict[Path, list[str]] = {}
    for number, video, question in _rows(path):
        if not question.strip():
            raise ValueError(f"{path}:{number}: question is missing or blank")
        if video:
            targets = [folder / video]
        elif videos is not None:
            # only now: a folder whose videos are all named may hold them in folders of its own
            targets = everywhere = everywhere or list_videos(videos)
        else:
            raise ValueError(f"{path}:{number}: names no video; give one, or a folder, as VIDEO")
        for target in targets:
            asked.setdefault(target, []).append(question)
    if not asked:
        raise ValueError(f"{path}: holds no question")
    # a question asked twice of a video has one answer
    return [(video, q) for video, questions in asked.items() for q in dict.fromkeys(questions)]


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yields line number, video (perhaps empty) and question."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        raise ValueError(f"--questions {path}: {reason}") from None
    if path.suffix.lower() == ".csv":
        yield from _csv_rows(path, text)
        return
    # not splitlines: text may hold other characters that Unicode takes for the end of a line
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        if path.suffix.lower() == ".jsonl":
            yield number, *_parse_object(path, number, line)
        else:
            yield number, "", line.strip()


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    reader = csv.DictReader(io.StringIO(text))
    try:
        if "question" not in (reader.fieldnames or ()):
            raise ValueError(
                f"{path}:1: the first line must name the columns, one of them question"
            )
        for row in reader:
            yield reader.line_num, row.get("video") or "", row["question"] or ""
    except csv.Error as error:
        # its own number is that of the row before
        raise ValueError(f"{path}:{reader.reader.line_num}: not CSV: {error}") from None


def _parse_object(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"{path}:{number}: not a JSON object")
    video, question = row.get("video") or "", row.get("question") or ""
    if not isinstance(video, str) or not isinstance(question, str):
        raise ValueError(f"{path}:{number}: video and question must be text")
    return video, question
