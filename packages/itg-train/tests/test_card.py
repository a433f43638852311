import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from itg_train.card import read_history, write_card
from itg_train.evaluate import QuestionResult, summarize
from itg_train.recipes import RECIPES
from itg_train.rundir import RunDir, describe_origin
from PIL import Image

CONFIG = replace(RECIPES["scripted-small"](), num_steps=4)


def result(question: str, precision: float, question_type: str = "semantic") -> QuestionResult:
    mine = {"average_precision": precision, "recall@10%": precision}
    chance = {"average_precision": 0.25, "recall@10%": 0.1}
    return QuestionResult(
        record_id="r",
        video="v.mp4",
        question=question,
        question_type=question_type,
        measures={"grounder": mine, "uniform": {"recall@10%": 0.1}, "random": chance},
    )


@pytest.fixture
def run_dir(tmp_path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    run_dir.checkpoint.mkdir(parents=True)
    (run_dir.checkpoint / "model.safetensors").write_bytes(bytes(2_500_000))
    steps = [{"step": n, "loss": 2.0 - n, "samples": 5, "s_per_step": 60.0} for n in range(4)]
    measured = {"step": 1, "validation": {"average_precision": 0.3, "recall@10%": 0.2}}
    lines = [json.dumps(line) for line in (*steps[:2], measured, *steps[2:])]
    run_dir.metrics.write_text("\n".join(lines) + "\n")
    run_dir.provenance.write_text(json.dumps(describe_origin()))
    return run_dir


@pytest.fixture
def write(run_dir, make_dataset):
    def write(results, config=CONFIG) -> str:
        prepared = SimpleNamespace(train=make_dataset(), heldout=make_dataset(split="heldout"))
        write_card(run_dir.checkpoint, "scripted-small", config, prepared, run_dir, results)
        return (run_dir.checkpoint / "README.md").read_text()

    return write


def test_the_history_is_what_the_steps_say(run_dir):
    history = read_history(run_dir.metrics)
    assert history.losses == [2.0, 1.0, 0.0, -1.0]
    assert history.validations == [(2, {"average_precision": 0.3, "recall@10%": 0.2})]
    assert (history.num_questions, history.taken_s) == (20, 240.0)


def test_the_card_says_what_it_knows_and_how_it_was_made(write, make_dataset):
    card = write([result("Where?", 0.9)])
    num_questions = sum(len(group.records) for group in make_dataset().groups)
    assert "**It knows drawn videos only**" in card
    assert "Weights: 2.5 MB" in card
    assert f"| train | 3 | {num_questions} |" in card
    assert "`itg-train scripted-small --num-steps 4` makes it again." in card
    assert "20 questions in all" in card
    assert "| took | 4 minutes on" in card
    assert "- What does the " in card


def test_the_table_gives_each_type_and_all(write):
    results = [result("Where?", 0.75), result("Moves?", 0.25, "motion")]
    card = write(results)
    assert "| motion | 1 | 0.250 | 0.250 | 0.250 | 0.100 |" in card
    assert "| all | 2 | 0.500 | 0.250 | 0.500 | 0.100 |" in card
    assert summarize(results)["all"]["grounder"]["average_precision"] == 0.5


def test_its_failures_are_shown_worst_first_and_their_text_is_only_shown(write):
    good = [result(f"Easy {n}?", 0.9) for n in range(20)]
    bad = [result("Hard <b>|\n?", 0.1), result("Hard <b>|\n?", 0.2), result("Harder?", 0.05)]
    card = write(good + bad)
    rows = card.split("## Where it fails")[1].splitlines()
    assert "13.0% have an average precision below 0.5" in card
    table = [row for row in rows if row.startswith("| ")][1:]
    assert table[0] == "| Harder? | 1 | 0.050 | 0.250 |"
    assert table[1] == "| Hard &lt;b>\\| ? | 2 | 0.150 | 0.250 |"
    assert len(table) == 8


def test_the_curve_is_a_picture(write, run_dir):
    write([result("Where?", 0.9)])
    with Image.open(run_dir.checkpoint / "curve.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("L").getcolors() or ()) > 16


def test_a_set_of_ones_own_is_named_and_not_where_it_lies(write, tmp_path):
    data = replace(CONFIG.data, root=tmp_path, annotations=tmp_path / "mine.jsonl")
    card = write([result("Where?", 0.9)], replace(CONFIG, data=data))
    assert "videos and questions like those of `mine.jsonl`" in card
    assert "Scripted videos" not in card


def test_a_run_of_which_nothing_could_be_measured_has_a_card_that_says_so(write, run_dir):
    card = write([])
    assert "Nothing was measured" in card
    assert "## Where it fails" not in card
    with Image.open(run_dir.checkpoint / "curve.png") as picture:
        assert picture.format == "PNG"
