"""Choose frames in every video of a directory, for one question, into one JSONL file.

    python examples/directory_to_jsonl.py videos/ "Who wins?" CHECKPOINT selections.jsonl

A line is a `FrameSelection`. Started again, it goes on where it was; a file that is no video is
named, counted and left out.
"""

import argparse
import json
import sys
from pathlib import Path

from itg_data.errors import VideoError
from itg_data.jsonl import read_jsonl
from itg_data.records import FrameSelection, to_json
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

    done = set()
    if args.output.exists():
        # a kill may have cut the last line short
        text = args.output.read_bytes()
        args.output.write_bytes(text[: text.rfind(b"\n") + 1])
        done = {record.video for record in read_jsonl(args.output, FrameSelection)}
    files = sorted(path for path in args.directory.rglob("*") if path.suffix.lower() in SUFFIXES)
    grounder = FrameGrounder.from_pretrained(args.checkpoint)
    num_failed = 0
    with args.output.open("a") as lines:
        for place, path in enumerate(files, 1):
            if str(path) in done:
                continue
            try:
                selection = grounder.select(path, args.question, args.top_k)
            except VideoError as error:
                num_failed += 1
                print(f"{place}/{len(files)} left out: {error}", file=sys.stderr)
                continue
            lines.write(json.dumps(to_json(selection), allow_nan=False) + "\n")
            lines.flush()
            print(f"{place}/{len(files)} {path}", file=sys.stderr)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
