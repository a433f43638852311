"""The functions of the task `itg_scripted`; lies beside its YAML and its data."""

import re
from pathlib import Path
from typing import Any

LETTERS = "ABCDE"


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    """The video's path; files lie beside this one."""
    return [str(Path(__file__).resolve().parent / doc["video"])]


def doc_to_text(doc: dict[str, Any]) -> str:
    """The prompt."""
    options = (
        f"{letter}. {option}" for letter, option in zip(LETTERS, doc["options"], strict=True)
    )
    lines = [doc["question"], *options, "Answer with the option's letter from the given choices."]
    return "\n".join(lines)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the first letter of an option that stands alone in the answer is the right one."""
    # a sentence may begin with an article
    said = re.sub(r"(^|[.!?:;]\s+)A (?!is\b)[a-z]", r"\1", results[0].strip())
    found = re.search(rf"\b[{LETTERS}]\b", said)
    return {"itg_scripted_acc": float(found is not None and found[0] == doc["answer"])}
