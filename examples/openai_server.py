"""Ask an OpenAI-compatible server about the frames that matter, each with its time before it.

    python examples/openai_server.py video.mp4 "Who wins?" CHECKPOINT \
        --url http://localhost:8000/v1 --vlm Qwen/Qwen3-VL-8B-Instruct

Works with vLLM, SGLang, `transformers serve` and the like; a key is taken from OPENAI_API_KEY.
"""

import argparse
import base64
import io
import os
from typing import Any

from itg_data.records import FrameSelection
from itg_data.video import open_video
from itg_model import FrameGrounder
from openai import OpenAI
from PIL import Image


def to_content(selection: FrameSelection, max_side: int = 768) -> list[dict[str, Any]]:
    """Makes a message's content of the chosen frames, in time order, and the question."""
    with open_video(selection.video) as reader:
        batch = reader.read([frame.source_idx for frame in selection.selected])
    content: list[dict[str, Any]] = []
    for frame, time_s in zip(batch.frames, batch.time_s, strict=True):
        picture = Image.fromarray(frame)
        picture.thumbnail((max_side, max_side))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        content.append({"type": "text", "text": f"[{time_s:.1f} s]"})
        content.append({"type": "image_url", "image_url": {"url": url}})
    return [*content, {"type": "text", "text": selection.question}]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("video")
    parser.add_argument("question")
    parser.add_argument("checkpoint", help="the grounder's")
    parser.add_argument("--url", default="http://localhost:8000/v1")
    parser.add_argument("--vlm", required=True, help="name of a model that the server has")
    parser.add_argument("--top-k", type=int, default=16)
    args = parser.parse_args()
    selection = FrameGrounder.from_pretrained(args.checkpoint).select(
        args.video, args.question, args.top_k
    )
    client = OpenAI(base_url=args.url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    completion = client.chat.completions.create(
        model=args.vlm,
        messages=[{"role": "user", "content": to_content(selection)}],  # type: ignore[arg-type]
        max_tokens=64,
    )
    print(completion.choices[0].message.content)
