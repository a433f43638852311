"""Ask a Video LLM of transformers about the frames that matter, each with its true time.

    python examples/transformers_video_llm.py video.mp4 "Who wins?" CHECKPOINT \
        --vlm Qwen/Qwen3-VL-8B-Instruct

Qwen3-VL writes times between the frames, which it computes as frames_indices / fps: with places in
the file that is wrong for files of varying rate, so it gets milliseconds and a rate of 1000.
"""

import argparse

import torch
from itg_data.records import FrameSelection
from itg_data.video import open_video
from itg_model import FrameGrounder
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature, ProcessorMixin


def to_inputs(processor: ProcessorMixin, selection: FrameSelection) -> BatchFeature:
    """Makes a Video LLM's input of the chosen frames and the question."""
    with open_video(selection.video) as reader:
        batch = reader.read([frame.source_idx for frame in selection.selected])
    # The model merges neighbours into one and averages their times. Neighbours here may lie minutes
    # apart, so each frame comes twice and is merged with itself.
    frames = torch.from_numpy(batch.frames).permute(0, 3, 1, 2).repeat_interleave(2, dim=0)
    times_ms = (batch.time_s * 1000).round().astype(int).repeat(2).tolist()
    video = {"fps": 1000.0, "frames_indices": times_ms, "total_num_frames": len(times_ms)}
    content = [{"type": "video"}, {"type": "text", "text": selection.question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return processor(
        text=[prompt],
        videos=[frames],
        video_metadata=[video],
        do_sample_frames=False,
        return_tensors="pt",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("video")
    parser.add_argument("question")
    parser.add_argument("checkpoint", help="the grounder's")
    parser.add_argument("--vlm", default="Qwen/Qwen3-VL-8B-Instruct")
    parser.add_argument("--top-k", type=int, default=16)
    args = parser.parse_args()
    selection = FrameGrounder.from_pretrained(args.checkpoint).select(
        args.video, args.question, args.top_k
    )
    processor = AutoProcessor.from_pretrained(args.vlm)
    model = AutoModelForImageTextToText.from_pretrained(args.vlm, dtype="auto", device_map="auto")
    inputs = to_inputs(processor, selection).to(model.device)
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
