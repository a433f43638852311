import re

import numpy as np
import pytest
from itg_data.jsonl import read_jsonl
from itg_eval.lmms.frames import Frames
from itg_eval.lmms.qwen import TimedImages, tell_true_times
from itg_eval.records import DocumentSelection
from PIL import Image


def make_images(times_s):
    images = [Image.new("RGB", (64, 64), (n, n, n)) for n in range(len(times_s))]
    return TimedImages(Frames(images=images, times_s=tuple(times_s)))


@pytest.fixture
def host():
    """Stands for a host's class: its module calls the real `process_vision_info`."""
    import sys
    import types

    from qwen_vl_utils import process_vision_info

    module = types.ModuleType("itg_pretended_host")
    module.process_vision_info = process_vision_info
    sys.modules["itg_pretended_host"] = module
    yield type("Host", (), {"__module__": "itg_pretended_host"}), module
    del sys.modules["itg_pretended_host"]


def process(module, *videos):
    conversations = [[{"role": "user", "content": [{"type": "video", "video": v}]}] for v in videos]
    return module.process_vision_info(
        conversations, return_video_kwargs=True, return_video_metadata=True
    )[1]


def test_metadata_of_a_list_of_frames_is_that_of_the_video_it_is_from(host):
    tell_true_times(host[0])
    tell_true_times(host[0])
    times_s = [2.25, 2.75, 6.0, 9.25]
    first, other = process(host[1], make_images(times_s), make_images([0.0, 100.0]))
    for (_, metadata), wanted in ((first, times_s), (other, [0.0, 100.0])):
        told = np.array(metadata["frames_indices"]) / metadata["fps"]
        assert told == pytest.approx(wanted, abs=5e-4)
    # what Qwen2.5-VL makes of it: one rate for all
    rate_hz = len(times_s) / first[1]["total_num_frames"] * first[1]["fps"]
    assert rate_hz == pytest.approx(3 / 7, rel=1e-3)


def test_an_odd_number_of_frames_is_filled_up_with_the_last_one_and_its_time(host):
    tell_true_times(host[0])
    ((pixels, metadata),) = process(host[1], make_images([1.0, 3.0, 7.5]))
    assert len(pixels) == len(metadata["frames_indices"]) == 4
    assert metadata["frames_indices"] == [1000, 3000, 7500, 7500]


def test_lists_of_others_keep_the_metadata_that_they_had(host):
    plain = list(make_images([5.0, 6.0]))
    before = process(host[1], plain)[0][1]
    tell_true_times(host[0])
    assert process(host[1], plain)[0][1] == before


@pytest.mark.slow
def test_a_real_qwen3_vl_reads_the_true_times_in_its_prompt(
    task, selections, tmp_path_factory, monkeypatch
):
    from itg_eval.scripted.qwen import write_tiny_qwen
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("qwen") / "tiny"
    write_tiny_qwen(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = []
    generate = Qwen3VLForConditionalGeneration.generate

    def generate_and_tell(self, **kwargs):
        prompts.extend(tokenizer.batch_decode(kwargs["input_ids"]))
        return generate(self, **kwargs)

    monkeypatch.setattr(Qwen3VLForConditionalGeneration, "generate", generate_and_tell)
    results = task.evaluate(
        "qwen3_vl",
        selections["labelled"],
        f"pretrained={folder},device=cpu,device_map=cpu,min_pixels=4096,max_pixels=16384",
        batch_size=2,
        limit=4,
    )
    assert len(results["samples"]["itg_scripted"]) == len(prompts) == 4
    for selection in list(read_jsonl(selections["labelled"], DocumentSelection))[:4]:
        question = task.documents[selection.doc_id].question
        assert [_times(p) for p in prompts if question in p].count(_pairs(selection)) == 1


def _times(prompt):
    return re.findall(r"<(\d+\.\d) seconds>", prompt)


def _pairs(selection):
    """Qwen3-VL sees two frames as one, at their mean time; an odd last one is doubled."""
    times = [*selection.time_s, selection.time_s[-1]]
    return [f"{(a + b) / 2:.1f}" for a, b in zip(times[0:-1:2], times[1::2], strict=True)]
