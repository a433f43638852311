import numpy as np
import pytest
import torch
from itg_model.model import FrameGroundingModel
from itg_train import evaluate as evaluation
from itg_train.evaluate import evaluate, format_table, summarize


@pytest.fixture
def report(tiny_model_config, make_dataset):
    torch.manual_seed(0)
    model = FrameGroundingModel(tiny_model_config)
    told = []
    found = evaluate(model, make_dataset(), seed=0, advance=lambda done, note: told.append(done))
    assert told == [1, 2, 3]
    return summarize(found)


def test_every_question_counts_once_for_its_type_and_once_for_all(report, make_dataset):
    counts = {name: of_type["grounder"]["num_questions"] for name, of_type in report.items()}
    total = counts.pop("all")
    assert (
        total == sum(counts.values()) == sum(len(group.records) for group in make_dataset().groups)
    )


def test_scores_that_are_the_labels_are_perfect_and_their_negative_is_not(
    tiny_model_config, make_dataset, monkeypatch
):
    for sign, expected in ((1, 1.0), (-1, None)):
        monkeypatch.setattr(
            evaluation,
            "_score_questions",
            lambda model, sample, chunk, sign=sign: [
                sign * label.numpy() for label in sample.labels
            ],
        )
        model = FrameGroundingModel(tiny_model_config)
        found = summarize(evaluate(model, make_dataset(), 0, lambda done, note: None))
        precision = found["semantic"]["grounder"]["average_precision"]
        if expected is None:
            assert precision < 0.5
            assert found["semantic"]["grounder"]["recall@5%"] == 0
        else:
            assert precision == expected


def test_chance_finds_about_its_share(report):
    assert report["all"]["random"]["recall@20%"] == pytest.approx(0.25, abs=0.08)
    assert "average_precision" not in report["all"]["uniform"]


def test_the_table_shows_every_method_and_all_questions_last(report):
    lines = format_table(report).splitlines()
    assert lines[-1].split()[0] == "all"
    assert len(lines) == 1 + sum(map(len, report.values()))
    assert "-" in lines[-2].split()


def test_values_are_means_over_questions_scored_one_by_one(report, tiny_model_config, make_dataset):
    torch.manual_seed(0)
    model = FrameGroundingModel(tiny_model_config).eval()
    dataset = make_dataset()
    found = []
    for place in range(len(dataset)):
        sample = dataset.load(place)
        for ids, label in zip(sample.input_ids, sample.labels, strict=True):
            with torch.no_grad():
                logits = model([sample.frames], [ids]).logits[0]
            best = logits.argsort(descending=True, stable=True)[:2]  # a tenth of 12, rounded up
            found.append(float(label[best].sum() / label.sum()))
    assert report["all"]["grounder"]["recall@10%"] == pytest.approx(np.mean(found))


def test_processes_that_share_the_videos_measure_what_one_measures(
    report, tiny_model_config, make_dataset
):
    torch.manual_seed(0)
    model = FrameGroundingModel(tiny_model_config)
    dataset = make_dataset()
    parts = [
        evaluate(model, dataset, 0, lambda done, note: None, places=range(rank, 3, 2))
        for rank in range(2)
    ]
    together = summarize(result for part in parts for result in part)
    for method, means in report["all"].items():
        assert together["all"][method] == pytest.approx(means)
