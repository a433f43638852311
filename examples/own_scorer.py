"""Choose frames by a scorer of your own: here CLIP, by how well each frame fits the question.

    python examples/own_scorer.py video.mp4 "a red car" --clip openai/clip-vit-large-patch14

A scorer is whatever gives one number for each sampled frame. Sampling, exact decoding and the
policies are the same as for the grounder, so two scorers can be compared and nothing else differs.
"""

import argparse

import numpy as np
import torch
from itg_data.sampling import SamplingConfig, sample_source_indices
from itg_data.video import open_video
from itg_model import select_frames
from transformers import CLIPModel, CLIPProcessor


@torch.inference_mode()
def score(frames: np.ndarray, question: str, model: CLIPModel, processor: CLIPProcessor):
    """Gives the cosine between the question and each frame, float64 [T]; frames: [T, H, W, 3]."""
    inputs = processor(text=[question], images=list(frames), return_tensors="pt", truncation=True)
    output = model(**inputs)
    return (output.image_embeds @ output.text_embeds.T).double().numpy()[:, 0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("video")
    parser.add_argument("question")
    parser.add_argument("--clip", default="openai/clip-vit-large-patch14")
    parser.add_argument("--policy", default="top-k")
    parser.add_argument("--top-k", type=int, default=8)
    args = parser.parse_args()
    model = CLIPModel.from_pretrained(args.clip).eval()
    processor = CLIPProcessor.from_pretrained(args.clip)

    with open_video(args.video) as reader:
        sampled = sample_source_indices(reader.num_frames, reader.fps, SamplingConfig())
        scores, times_s, places = [], [], []
        for chunk in np.array_split(sampled, -(-len(sampled) // 64)):
            batch = reader.read(chunk)
            scores.extend(score(batch.frames, args.question, model, processor))
            times_s.extend(batch.time_s)
            places.extend(batch.source_idx)

    for i in select_frames(np.array(scores), args.top_k, args.policy):
        print(f"frame {places[i]}  {times_s[i]:.2f} s  {scores[i]:.3f}")
