import dataclasses
import json

import numpy as np
import pytest
from itg_data.errors import ItgError, VideoError
from itg_data.jsonl import read_jsonl, write_jsonl
from itg_eval.records import DocumentSelection, Selections
from itg_eval.scores import fail

# the first test pays for the import of lmms-eval and for the scripted videos
pytestmark = pytest.mark.slow


def load(path):
    return {s.doc_id: s for s in read_jsonl(path, DocumentSelection)}


def rewrite(path, change, folder):
    """The same selections, each changed; None drops one."""
    changed = [change(selection) for selection in read_jsonl(path, DocumentSelection)]
    target = folder / "changed.jsonl"
    write_jsonl(target, [selection for selection in changed if selection is not None])
    return target


@pytest.mark.parametrize("force_simple", [False, True], ids=["chat", "simple"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_every_question_is_shown_exactly_its_own_frames(
    batch_size, force_simple, task, selections, probe, frames_of
):
    results = task.evaluate(
        "probe",
        selections["labelled"],
        "frames_as=images",
        batch_size=batch_size,
        force_simple=force_simple,
    )
    seen = probe.by_doc()
    assert len(probe.seen) == len(seen) == len(task.documents)
    for doc_id, selection in load(selections["labelled"]).items():
        shown = np.stack([np.asarray(image) for image in seen[doc_id].images])
        assert np.array_equal(shown, frames_of(selection))
        assert task.documents[doc_id].question in seen[doc_id].texts[-1]
    backend = "SimpleITG (simple)" if force_simple else "ITG (chat)"
    assert results["config"]["model_backend"] == f"itg_eval.lmms.wrapper.{backend}"
    assert probe.hosts[0].is_simple is force_simple
    assert probe.hosts[0].cleaned


def test_pictures_come_with_the_times_at_which_they_are_shown(task, selections, probe):
    task.evaluate("probe", selections["labelled"], "frames_as=images")
    chosen = load(selections["labelled"])[0]
    assert probe.by_doc()[0].texts[:-1] == [f"<{t:.1f} seconds>" for t in chosen.time_s]
    probe.seen.clear()
    task.evaluate("probe", selections["labelled"], "frames_as=images", force_simple=True)
    listed = ", ".join(f"{t:.1f}" for t in chosen.time_s)
    assert f"at these seconds: {listed}.\n" in probe.by_doc()[0].texts[0]
    probe.seen.clear()
    task.evaluate("probe", selections["labelled"], "frames_as=images,timestamps=false")
    assert len(probe.by_doc()[0].texts) == 1


def test_a_host_that_takes_a_path_gets_a_clip_of_each_frame_three_times(
    task, selections, probe, frames_of, monkeypatch
):
    from itg_data.video import open_video
    from itg_eval.lmms import forms, show

    read = []
    write = show.write_clip

    def write_and_read(path, frames):
        write(path, frames)
        with open_video(path) as video:
            read.append(video.read(range(video.num_frames)).frames)

    monkeypatch.setitem(
        forms.HOSTS, "probe", forms.HostForms(simple="clip", num_frames_arg="num_frame")
    )
    monkeypatch.setattr(show, "write_clip", write_and_read)
    task.evaluate("probe", selections["uniform"], force_simple=True)
    assert probe.hosts[0].num_frame == 8
    assert len(read) == len(task.documents)
    for seen, clip in zip(probe.seen, read, strict=True):
        assert (len(seen.videos), len(seen.images)) == (1, 0)
        wanted = frames_of(load(selections["uniform"])[seen.doc_id])
        assert clip.shape == (24, *wanted.shape[1:])
        error = np.abs(clip.astype(int) - np.repeat(wanted, 3, 0)).mean()
        assert error < 1
    with pytest.raises(ItgError, match="num_frame must be the number of selected frames, 8, got 4"):
        task.evaluate("probe", selections["uniform"], "num_frame=4", force_simple=True)


def test_llava_onevision_is_told_that_its_pictures_are_one_video(task, selections, probe):
    task.evaluate("probe", selections["uniform"], "frames_as=pil_video", force_simple=True)
    for seen in probe.seen:
        assert len(seen.images) == 8
        assert (seen.metadata["task_type"], seen.metadata["sample_frames"]) == ("video", 8)


def test_fewer_frames_than_asked_for_are_shown_as_they_are(task, selections, probe, tmp_path):
    def keep_two(selection):
        return dataclasses.replace(
            selection,
            source_idx=selection.source_idx[:2],
            time_s=selection.time_s[:2],
            scores=selection.scores[:2],
        )

    short = rewrite(selections["uniform"], keep_two, tmp_path)
    task.evaluate("probe", short, "frames_as=images", batch_size=2)
    assert {len(seen.images) for seen in probe.seen} == {2}


def test_a_question_without_a_selection_fails_before_anything_is_asked(
    task, selections, probe, tmp_path
):
    without = rewrite(selections["uniform"], lambda s: s if s.doc_id % 3 else None, tmp_path)
    missing = len(range(0, len(task.documents), 3))
    said = f"{missing} of {len(task.documents)} documents have no selection .*itg_scripted/test/0"
    with pytest.raises(ItgError, match=said):
        task.evaluate("probe", without, "frames_as=images")
    assert probe.seen == []


def test_when_asked_a_question_without_a_selection_is_shown_even_frames_and_counted(
    task, selections, probe, tmp_path, caplog, frames_of
):
    without = rewrite(selections["labelled"], lambda s: s if s.doc_id else None, tmp_path)
    task.evaluate("probe", without, "frames_as=images", "missing=uniform")
    assert f"1 of {len(task.documents)} documents have no selection" in caplog.text
    shown = np.stack([np.asarray(image) for image in probe.by_doc()[0].images])
    assert np.array_equal(shown, frames_of(load(selections["uniform"])[0]))


def test_a_question_that_is_left_out_is_not_asked_and_its_answer_empty(
    task, selections, probe, tmp_path
):
    without = rewrite(selections["labelled"], lambda s: s if s.doc_id else None, tmp_path)
    write_jsonl(tmp_path / "left-out.jsonl", [fail(task.documents[0], "torn")])
    args = ("frames_as=images", f"left_out={tmp_path / 'left-out.jsonl'}")
    for more in ((), (f"journal={tmp_path / 'journal'}",)):
        probe.seen.clear()
        results = task.evaluate("probe", without, *args, *more)
        assert sorted(probe.by_doc()) == list(range(1, len(task.documents)))
        answers = {
            sample["doc_id"]: sample["filtered_resps"]
            for sample in results["samples"]["itg_scripted"]
        }
        assert answers == {n: ["C"] if n else [""] for n in range(len(task.documents))}


def test_a_selection_for_another_question_is_refused(task, selections, probe, tmp_path):
    other = rewrite(
        selections["uniform"],
        lambda s: dataclasses.replace(s, question_sha256="0" * 64) if s.doc_id == 2 else s,
        tmp_path,
    )
    with pytest.raises(ItgError, match="itg_scripted/test/2 was made for another question"):
        task.evaluate("probe", other, "frames_as=images")
    assert probe.seen == []


def test_a_selection_made_from_a_longer_file_is_refused(task, selections, probe, tmp_path):
    beyond = rewrite(
        selections["uniform"],
        lambda s: dataclasses.replace(s, source_idx=(*s.source_idx[:-1], 10**6)),
        tmp_path,
    )
    with pytest.raises(VideoError, match="frame 1000000 is selected, but the file has"):
        task.evaluate("probe", beyond, "frames_as=images")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("frames_sha=" + "0" * 64, "the file has changed since"),
        ("", "frames_sha is missing: add frames_sha="),
        ("frames_sha={sha},missing=guess", "missing must be fail or uniform"),
        ("frames_sha={sha},frames_as=smoke", "frames_as must be one of images"),
        ("frames_sha={sha}", "no form is known in which probe"),
        ("frames_sha={sha},frames_as=pil_video", "frames_as=pil_video is for simple hosts"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(args, said, task, selections, probe):
    sha = Selections.load(selections["uniform"]).sha256
    with pytest.raises(ItgError, match=said):
        task.evaluate(
            "probe", None, f"selection={selections['uniform']}", args.format(sha=sha).strip(",")
        )
    assert probe.seen == []


def test_only_a_host_model_can_be_the_inner_one(task, selections):
    for inner in ("itg", "no_such_model"):
        with pytest.raises(ItgError, match="inner"):
            task.evaluate(inner, selections["uniform"])


def test_lmms_evals_cache_does_not_answer_from_another_selection(task, selections, probe, tmp_path):
    def ask(path):
        probe.seen.clear()
        task.evaluate("probe", path, "frames_as=images", use_cache=str(tmp_path / "cache"))
        return len(probe.seen)

    file = tmp_path / "selection.jsonl"
    file.write_bytes(selections["uniform"].read_bytes())
    assert ask(file) == len(task.documents)
    assert ask(file) == 0, "the cache is at work"
    file.write_bytes(selections["labelled"].read_bytes())
    assert ask(file) == len(task.documents)


def test_a_journal_gives_the_answers_of_a_killed_run_and_asks_the_rest(
    task, selections, probe, tmp_path
):
    def ask(kind, batch_size=1):
        probe.seen.clear()
        args = (selections[kind], "frames_as=images", f"journal={tmp_path / 'journal'}")
        results = task.evaluate("probe", *args, batch_size=batch_size)
        answers = [s["filtered_resps"] for s in results["samples"]["itg_scripted"]]
        assert answers == [["C"]] * len(task.documents)
        return [seen.doc_id for seen in probe.seen]

    everything = ask("uniform")
    assert sorted(everything) == list(range(len(task.documents)))
    assert ask("uniform") == []
    assert ask("uniform", batch_size=2) == [], "what was answered one by one stands"
    path = tmp_path / "journal" / "answers-000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    assert ask("uniform") == everything[3:]
    assert ask("uniform") == []
    assert ask("labelled") == everything, "answers belong to one selection"


def test_the_cost_is_that_of_all_questions_however_many_calls_they_took(
    task, selections, probe, tmp_path, monkeypatch
):
    from itg_eval.lmms import wrapper

    monkeypatch.setattr(wrapper, "_BATCHES_PER_CALL", 2)
    clock = iter(range(1000))
    monkeypatch.setattr(wrapper.time, "perf_counter", lambda: float(next(clock)))
    results = task.evaluate(
        "probe", selections["uniform"], "frames_as=images", f"journal={tmp_path / 'journal'}"
    )
    told = results["throughput"]
    assert told["avg_itg_questions"] == len(task.documents)
    # a second a call of two
    assert told["avg_itg_seconds"] == -(-len(task.documents) // 2)


def test_likelihoods_and_rounds_are_shown_the_frames_too(task, selections, probe, frames_of):
    from itg_eval.lmms.wrapper import ITG, SimpleITG
    from lmms_eval.api.instance import Instance

    sha = Selections.load(selections["labelled"]).sha256
    chosen = load(selections["labelled"])[0]
    row, video = task.rows[0], str(task.folder / task.rows[0]["video"])
    metadata = {"task": "itg_scripted", "doc_id": 0, "repeats": 1, "split": "test"}

    def asked(wrapper, kind, *args):
        model = wrapper(
            inner="probe",
            selection=str(selections["labelled"]),
            frames_sha=sha,
            frames_as="images",
            timestamps=False,
        )
        model.task_dict["itg_scripted"] = {"test": [row]}
        arguments = (*args, 0, "itg_scripted", "test")
        getattr(model, kind)([Instance(kind, arguments, 0, metadata)])
        return np.stack([np.asarray(image) for image in probe.seen[-1].images])

    shown = asked(SimpleITG, "loglikelihood", "Which?", "A", lambda doc: [video])
    assert np.array_equal(shown, frames_of(chosen))
    content = {"type": "video", "url": video}

    def one_round(doc, *, round_idx, previous_output, previous_round_info):
        return [{"role": "user", "content": [content]}], True, previous_output, None

    shown = asked(ITG, "generate_until_multi_round", "", one_round, {})
    assert np.array_equal(shown, frames_of(chosen))
    with pytest.raises(ItgError, match="itg_scripted/test/0: frames can only be put in place of"):
        asked(ITG, "generate_until", "", lambda doc: [{"role": "user", "content": []}], {})
    with pytest.raises(ItgError, match="the task shows 2"):
        asked(SimpleITG, "generate_until", "", {"max_new_tokens": 1}, lambda doc: [video, video])


def test_what_lmms_eval_sets_from_outside_reaches_the_host(task, selections, probe):
    from itg_eval.lmms.wrapper import ITG

    model = ITG(
        inner="probe",
        selection=str(selections["uniform"]),
        frames_sha=Selections.load(selections["uniform"]).sha256,
        frames_as="images",
    )
    host = probe.hosts[-1]
    model._rank, model._world_size, model.accelerator = 1, 2, "accelerator"
    assert (host.rank, host.world_size, host.accelerator) == (1, 2, "accelerator")
    assert (model.rank, model.world_size) == (1, 2)
    assert model.task_dict is host.task_dict
    assert model.batch_size == host.batch_size
    model.set_cache_hook("hook")
    assert host.cache_hook == "hook"
    assert not hasattr(model, "no_such_thing")


def test_grounded_frames_help_a_host_that_sees_and_not_by_chance(
    task, selections, tmp_path_factory
):
    from itg_eval.benchmark.stats import compare
    from itg_eval.scripted.reader import train_reader

    folder = tmp_path_factory.mktemp("reader")
    train_reader(folder)
    right = {}
    for kind in ("uniform", "labelled"):
        results = task.evaluate("itg_reader", selections[kind], f"pretrained={folder}")
        samples = sorted(results["samples"]["itg_scripted"], key=lambda s: s["doc_id"])
        right[kind] = [bool(sample["itg_scripted_acc"]) for sample in samples]
    difference = compare(
        right["uniform"], right["labelled"], [document.video for document in task.documents]
    )
    assert sum(right["labelled"]) >= 0.8 * len(task.documents)
    assert difference.low > 0
    assert json.dumps(results["throughput"]["avg_itg_questions"]) == f"{len(task.documents)}.0"
