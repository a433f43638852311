"""Choose frames in every video of a directory, for one question, into one JSONL file.

    python examples/directory_to_jsonl.py videos/ "Who wins?" CHECKPOINT selections.jsonl

A line is a `FrameSelection`. Started again, it goes on; what is no video is named and left out.
"""

import argparse
import sys
from pathlib import Path

from itg_data.errors import RecordError, VideoError
from itg_data.jsonl import format_record, parse_record
from itg_data.records import FrameSelection
from itg_model import FrameGrounder

SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".ts", ".m4v"}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("question")
    parser.add_argument("checkpoint", help="the grounder's")
    parser.add_argument("output", type=Path)
    parser.add_argument("--top-k", type=int, default=32)
    args = parser.parse_args()
    grounder = FrameGrounder.from_pretrained(args.checkpoint)
    text, done = args.output.read_bytes() if args.output.exists() else b"", set()
    whole = text[: text.rfind(b"\n") + 1]  # a kill may have cut the last line short
    try:
        for line in whole.splitlines(keepends=True):
            old = parse_record(line, FrameSelection)
            wanted = (args.question, grounder.name, "top-k", min(args.top_k, old.num_sampled))
            if (found := (old.question, old.model, old.policy, len(old.selected))) != wanted:
                raise RecordError(f"holds answers to {found}, not to {wanted}")
            done.add(old.video)
    except RecordError as error:
        sys.exit(f"{args.output}: {error}; name another file")
    files = sorted(p for p in args.directory.rglob("*") if p.suffix.lower() in SUFFIXES)
    files = [path for path in files if str(path) not in done]
    num_failed = 0
    with args.output.open("ab") as lines:
        lines.truncate(len(whole))
        for place, path in enumerate(files, 1):
            try:
                selection = grounder.select(path, args.question, args.top_k)
            except VideoError as error:
                num_failed += 1
                print(f"{place}/{len(files)} left out: {error}", file=sys.stderr)
                continue
            lines.write(format_record(selection))
            lines.flush()
            print(f"{place}/{len(files)} {path}", file=sys.stderr)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
