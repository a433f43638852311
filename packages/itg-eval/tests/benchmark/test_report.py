import html
import json
import re

import pytest
from itg_eval.benchmark.plan import Host
from itg_eval.benchmark.published import find_published
from itg_eval.benchmark.report import to_html, to_json, to_markdown

HOSTILE = "a|b</script><img src=x onerror=owned=1> \u202e[x](http://y) `$title`"


QWEN = Host.parse("qwen3_vl,pretrained=Qwen/Qwen3-VL-8B-Instruct")


def test_accuracies_and_differences_are_those_of_the_outcomes(make_table):
    rows = {(row.task, row.group): row for row in make_table(QWEN).hosts[0].rows}
    assert list(rows) == [("videomme", "short"), ("videomme", "long"), ("videomme", None)]
    long = rows["videomme", "long"]
    assert (long.num_questions, long.uniform, long.grounded) == (12, 0, 9 / 12)
    whole = rows["videomme", None]
    assert (whole.difference.num_gained, whole.difference.num_lost) == (9, 1)
    assert whole.difference.mean == pytest.approx(8 / 24)
    assert whole.difference.low < 8 / 24 < whole.difference.high


def test_several_tasks_have_a_row_for_all_of_them(make_table):
    last = make_table(QWEN, with_two_tasks=True).hosts[0].rows[-1]
    assert (last.task, last.num_questions) == ("all tasks", 48)


def test_the_papers_numbers_stand_beside_ours_where_there_are_some(make_table):
    rows = make_table(QWEN).hosts[0].rows
    published = [row.published for row in rows]
    assert (published[1].uniform, published[1].grounded) == (0.551, 0.603)
    assert published[2] is None, "the paper has no number for all of Video-MME"
    text = to_markdown(make_table(QWEN))
    assert "| paper: uniform | paper: grounded |" in text
    assert "arXiv 2507.13353" in text
    other = to_markdown(make_table(Host.parse("gpt,model_version=other")))
    assert "paper" not in other.lower()


@pytest.mark.parametrize(
    ("checkpoint", "task", "group", "percents"),
    [
        ("OpenGVLab/InternVL2_5-8B", "longvideobench_val_v", None, (58.3, 61.9)),
        ("/models/InternVL3_5-8B", "cgbench", None, (40.9, 47.6)),
        ("Qwen/Qwen3-VL-8B-Instruct", "mlvu_dev", None, (64.1, 77.2)),
        ("lmms-lab/LLaVA-Video-7B-Qwen2", "videomme", "short", (76.3, 77.3)),
        ("nvidia/Eagle2.5-8B", "videomme", "medium", (64.1, 67.8)),
    ],
)
def test_published_numbers_are_found_by_checkpoint_task_and_group(
    checkpoint, task, group, percents
):
    found = find_published(checkpoint, task, group)
    assert (found.uniform * 100, found.grounded * 100) == pytest.approx(percents)
    assert find_published("somebody/else", task, group) is None


@pytest.mark.parametrize(
    "checkpoint",
    [
        "Qwen/Qwen3-VL-8B-Thinking",
        "/runs/qwen3-vl-8b-pruned/step10",
        "/runs/qwen3-vl-8b/step10",
        "my-qwen3-vl-8b",
        "",
    ],
)
def test_the_papers_numbers_are_not_those_of_other_hosts_of_a_like_name(checkpoint):
    assert find_published(checkpoint, "mlvu_dev") is None


@pytest.mark.parametrize("changes", [{"top_k": 8}, {"limit": 20}])
def test_the_papers_numbers_stand_beside_as_many_frames_and_all_questions_only(make_table, changes):
    assert "paper" not in to_markdown(make_table(QWEN, **changes)).lower()


def test_cost_and_missing_selections_are_said(make_table):
    text = to_markdown(make_table(QWEN))
    assert "scoring the frames not measured, answering with uniform frames 0.5," in text
    assert "3 questions had no grounded selection and were shown uniform frames." in text


def test_questions_to_which_the_host_said_nothing_are_counted_by_arm(make_table):
    table = make_table(QWEN, num_silent=2)
    assert table.hosts[0].num_empty_answers == {"uniform": 0, "grounded": 2}
    assert "To 2 questions with grounded frames the host said nothing." in to_markdown(table)


def test_questions_left_out_are_counted_where_the_report_begins(make_table):
    said = "5 more questions are left out of both: their videos cannot be read."
    assert said in to_markdown(make_table(QWEN, num_left_out=5))
    assert "left out" not in to_markdown(make_table(QWEN))


def test_json_holds_everything(make_table):
    data = json.loads(to_json(make_table(QWEN)))
    assert data["schema_version"] == 1
    (host,) = data["hosts"]
    assert host["rows"][1]["difference"]["num_gained"] == 9
    assert data["plan"]["params"] == ["min_gap_s=5"]


def test_names_of_others_are_text_and_nothing_else(make_table):
    table = make_table(Host(id=HOSTILE, args=""), label=HOSTILE)
    page = to_html(table)
    assert page.isascii()
    assert "<img" not in page
    assert "</script" not in page
    assert "&lt;img src=x onerror=owned=1&gt;" in page
    assert "$title" in html.unescape(page), "names are not taken for places in the template"
    text = to_markdown(table)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    columns = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert len(columns) == 1
    assert "\u202e" not in text


def test_the_page_asks_no_network_for_anything_and_runs_nothing(make_table):
    page = to_html(make_table(QWEN))
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:,)", page)
