import threading
import time

import pytest
from itg_train.loader import Planner, iterate_steps
from itg_train.order import Order


@pytest.fixture
def make_planner(make_dataset, tiny_model_config):
    def make(num_processes=1, tokens_per_pass=10_000, side_seed=None, dataset=None):
        dataset = dataset or make_dataset(questions_per_group=2)
        order = Order(num_groups=len(dataset), groups_per_step=3, seed=0)
        return Planner(
            dataset=dataset,
            order=order,
            model=tiny_model_config,
            num_processes=num_processes,
            tokens_per_pass=tokens_per_pass,
            side_seed=side_seed,
        )

    return make


def questions_of(planner, step):
    return sorted(
        (item.place, question, side)
        for process in planner.plan(step)
        for of_pass in process
        for item in of_pass
        for question, side in zip(item.questions, item.sides, strict=True)
    )


@pytest.mark.parametrize("tokens_per_pass", [60, 150, 10_000])
def test_what_a_step_learns_does_not_depend_on_processes_or_passes(make_planner, tokens_per_pass):
    alone = make_planner(side_seed=0)
    shared = make_planner(3, tokens_per_pass, side_seed=0)
    for step in range(6):
        assert questions_of(shared, step) == questions_of(alone, step)


def test_sides_are_drawn_per_question_and_from_the_step_alone(make_planner):
    planner = make_planner(side_seed=0)
    drawn = [questions_of(planner, step) for step in range(12)]
    assert {side for step in drawn for *_, side in step} == {1, 2}
    assert [questions_of(make_planner(side_seed=0), step) for step in range(12)] == drawn
    assert [questions_of(make_planner(side_seed=1), step) for step in range(12)] != drawn
    assert {side for step in range(12) for *_, side in questions_of(make_planner(), step)} == {2}


def test_steps_that_start_late_are_those_of_a_run_that_did_not_stop(make_planner):
    def ids(first):
        batches = iterate_steps(make_planner(), 0, first, 6, num_workers=2)
        return [[r.id for p in b.passes for s in p.samples for r in s.records] for b in batches]

    whole = ids(0)
    assert len(whole) == 6
    assert ids(4) == whole[4:]


def test_a_video_that_cannot_be_decoded_after_all_is_named_and_skipped(
    make_planner, make_dataset, scripted, tmp_path
):
    import shutil

    root = tmp_path / "set"
    shutil.copytree(scripted[0], root)
    dataset = make_dataset(root=root)
    gone = dataset.groups[1].video
    (root / gone).unlink()
    planner = make_planner(dataset=dataset)
    (batch,) = iterate_steps(planner, 0, 0, 1, num_workers=2)
    assert len(batch.skipped) == 1
    assert gone in batch.skipped[0]
    assert batch.skipped[0].endswith(": no such file")
    videos = sorted(s.video for p in batch.passes for s in p.samples)
    assert videos == sorted(g.video for g in dataset.groups if g.video != gone)


@pytest.mark.parametrize(("many_groups", "steps_read"), [(3, 2), (4, 3)])
def test_of_large_steps_only_the_next_one_is_read_ahead(
    make_planner, monkeypatch, many_groups, steps_read
):
    monkeypatch.setattr("itg_train.loader.MANY_GROUPS", many_groups)
    planner = make_planner()
    plan, planned = Planner.plan, []

    def watch(self, step):
        planned.append(step)
        return plan(self, step)

    monkeypatch.setattr(Planner, "plan", watch)
    batches = iterate_steps(planner, 0, 0, 6, num_workers=2)
    next(batches)
    # what it was going to plan, it has planned by the time of the next step
    next(batches)
    assert set(planned) - {steps_read} == set(range(steps_read))
    batches.close()
    assert max(planned) <= steps_read


def test_who_stops_early_does_not_wait_for_what_is_read_ahead(make_planner, monkeypatch):
    planner = make_planner()
    load, loaded, goes_on = type(planner.dataset).load, [], threading.Event()

    def wait(self, place, questions):
        loaded.append(place)
        if len(loaded) > 3:
            goes_on.wait(3)
        return load(self, place, questions)

    monkeypatch.setattr(type(planner.dataset), "load", wait)
    batches = iterate_steps(planner, 0, 0, 6, num_workers=1)
    next(batches)
    started_s = time.monotonic()
    batches.close()
    # six items are left
    assert time.monotonic() - started_s < 9
    goes_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(30)
    # the one that was being read, perhaps, and none of those behind it
    assert len(loaded) <= 4
