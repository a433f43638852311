from pathlib import Path
from types import ModuleType

import pytest
from itg_data.annotate.localize import settle_type
from itg_data.scripted_vlm.cli import write_set
from itg_data.scripted_vlm.server import Behaviour
from itg_data.scripted_vlm.sight import ScriptedSet
from itg_data.sets import SetFolder
from itg_data.sets.check import check_set
from itg_data.synthetic import SyntheticConfig


@pytest.fixture(scope="module")
def labels(load_script) -> ModuleType:
    return load_script(Path(__file__).parents[1] / "benchmarks" / "labels.py")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels") / "set"
    write_set(folder, SyntheticConfig(num_train=1, num_heldout=1, duration_s=24))
    return folder


@pytest.fixture(scope="module")
def scripted(root: Path) -> ScriptedSet:
    return ScriptedSet(root)


@pytest.mark.slow
def test_a_truthful_server_leads_to_the_labels_of_the_script(labels, root, scripted, tmp_path):
    case = labels.Case(name="truth", behaviour=Behaviour())
    labels.annotate(case, root, scripted, tmp_path / "out")
    for question_type, score in labels.measure(root, tmp_path / "out").items():
        assert score.num_questions > 0
        assert score.num_kept == score.num_typed_right == score.num_questions, question_type
        assert score.precision >= 0.95, question_type
        assert score.recall >= 0.95, question_type
    report = check_set(SetFolder(tmp_path / "out"), tmp_path / "out")
    assert report.is_sound, report.findings


@pytest.mark.slow
def test_the_check_raises_the_precision_of_a_noisy_server(labels, root, scripted, tmp_path):
    precision: list[float] = []
    for checked in (False, True):
        case = labels.Case(name="noise", behaviour=Behaviour(noise=0.1), checked=checked)
        labels.annotate(case, root, scripted, tmp_path / "out")
        scores = labels.measure(root, tmp_path / "out")
        found = [scores[name] for name in ("semantic", "motion", "semantic_motion")]
        precision.append(sum(s.num_right for s in found) / sum(s.num_labelled for s in found))
    assert precision[0] + 0.2 < precision[1]


def test_scores_count_dropped_questions_as_missed(labels, root):
    score = labels.Score(
        num_questions=2,
        num_kept=1,
        num_typed_right=1,
        num_true=8,
        num_labelled=5,
        num_right=4,
        num_stretches=2,
        num_stretches_found=1,
    )
    assert (score.precision, score.recall, score.stretch_recall) == (0.8, 0.5, 0.5)
    case = labels.Case(name="x", behaviour=Behaviour(noise=0.1), features="thumbnails")
    types = ("semantic", "motion", "semantic_motion", "no_clue")
    about = {"num_videos": 2, "git_sha": "0", "utc": "now"}
    rows = labels.to_rows(case, dict.fromkeys(types, score), about)
    table = labels.write_report(rows)
    assert table.splitlines()[-1] == f"| x |{' 0.800 / 0.500 (0.500) |' * 4} 4 of 8 |"


@pytest.mark.parametrize(
    ("question_type", "clips", "settled"),
    [
        ("no_clue", (), "no_clue"),
        ("no_clue", (2,), "semantic"),
        ("no_clue", (0, 1, 2, 4, 7), "no_clue"),
        ("motion", (2,), "motion"),
        ("semantic", (2,), "semantic"),
    ],
)
def test_retrieval_outvotes_a_no_clue_question_if_it_chose_few_clips(question_type, clips, settled):
    assert settle_type(question_type, clips, 10) == settled
