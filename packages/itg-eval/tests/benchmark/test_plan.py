import dataclasses
import json

import pytest
from itg_data.errors import ItgError
from itg_eval.benchmark import answers
from itg_eval.benchmark.answers import Arm, to_command, to_environment
from itg_eval.benchmark.outcomes import Cost, Outcome
from itg_eval.benchmark.plan import Host, Plan, RunDir
from itg_eval.benchmark.table import tabulate
from itg_eval.records import Document

PLAN = Plan(
    tasks=("videomme",),
    include_path=None,
    limit=None,
    model="nvidia/VideoITG-8B",
    scores=None,
    rate_hz=1.0,
    max_frames=None,
    policy="min-gap",
    params=("min_gap_s=5",),
    top_k=32,
)
QWEN = Host.parse("qwen3_vl,pretrained=Qwen/Qwen3-VL-8B-Instruct,max_num_frames=32")


def make_arm(tmp_path, host=QWEN, **changes):
    arm = Arm(
        host=host,
        name="grounded",
        selection=tmp_path / "grounded.jsonl",
        folder=tmp_path / "arm",
        tasks=("videomme", "mlvu_dev"),
        include_path=None,
        limit=None,
        missing="fail",
        batch_size=2,
        num_processes=1,
    )
    return dataclasses.replace(arm, **changes)


def test_a_host_is_its_id_and_its_own_arguments():
    assert (QWEN.id, QWEN.args.split(",")[1]) == ("qwen3_vl", "max_num_frames=32")
    assert QWEN.checkpoint == "Qwen/Qwen3-VL-8B-Instruct"
    assert QWEN.label == "qwen3_vl (Qwen3-VL-8B-Instruct)"
    assert Host.parse("gpt").label == "gpt"
    assert QWEN.folder != Host.parse("qwen3_vl,pretrained=other").folder


@pytest.mark.parametrize("text", ["", ",a=b", "../x", "a b", "qwen3_vl,pretrained", "-x"])
def test_what_is_no_host_is_refused(text):
    with pytest.raises(ItgError, match="--host"):
        Host.parse(text)


def test_a_folder_belongs_to_one_plan(tmp_path):
    run_dir = RunDir(tmp_path / "run")
    run_dir.claim(PLAN)
    run_dir.claim(PLAN)
    assert run_dir.load_plan() == PLAN
    with pytest.raises(ItgError, match="holds a run with top_k 32, not 16; name another folder"):
        run_dir.claim(dataclasses.replace(PLAN, top_k=16))


@pytest.mark.parametrize("content", [b"", b"{}\n", b"[1]\n", b"\xff\n"])
def test_a_broken_plan_is_named(content, tmp_path):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ItgError, match=r"run\.json: .*; remove it to start over"):
        RunDir(tmp_path).claim(PLAN)


def test_hosts_are_remembered(tmp_path):
    run_dir = RunDir(tmp_path)
    assert run_dir.hosts() == []
    run_dir.welcome(QWEN)
    assert run_dir.hosts() == [QWEN]


def test_a_built_in_host_keeps_its_id_so_that_tasks_keep_their_prompts_for_it(tmp_path):
    arm = make_arm(tmp_path)
    command = to_command(arm, "a" * 64)
    said = dict(zip(command[3::2], command[4::2], strict=False))
    assert said["--model"] == "qwen3_vl"
    assert said["--tasks"] == "videomme,mlvu_dev"
    assert "inner=" not in said["--model_args"]
    assert f"frames_sha={'a' * 64}" in said["--model_args"].split(",")
    assert said["--model_args"].endswith(QWEN.args)
    assert to_environment(arm)["ITG_SHADOW"] == "qwen3_vl"


def test_any_other_host_is_called_through_ours(tmp_path):
    arm = make_arm(tmp_path, Host.parse("itg_reader,pretrained=x"), num_processes=2, limit=5)
    command = to_command(arm, "a" * 64)
    assert command[2:7] == ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    assert command[command.index("--model") + 1] == "itg"
    assert "inner=itg_reader" in command[command.index("--model_args") + 1].split(",")
    assert command[command.index("--limit") + 1] == "5"
    assert "ITG_SHADOW" not in to_environment(arm)


def test_a_path_that_lmms_eval_would_cut_in_two_is_refused(tmp_path):
    with pytest.raises(ItgError, match="takes no path with a comma"):
        to_command(make_arm(tmp_path, folder=tmp_path / "a,b"), "a" * 64)


def test_an_api_key_reaches_the_host_and_no_file(tmp_path, monkeypatch):
    host = Host.parse("openai,model_version=x,api_key=sk-SECRET,max_retries=1")
    arm = make_arm(tmp_path, host, folder=tmp_path / "run/arm")
    monkeypatch.setattr(answers, "run_child", lambda command, **streams: None)
    arm.folder.mkdir(parents=True)
    answers._run_lmms_eval(arm, "a" * 64, [])
    assert "sk-SECRET" not in " ".join(to_command(arm, "a" * 64))
    assert "max_retries=1" in " ".join(to_command(arm, "a" * 64))
    assert json.loads(to_environment(arm)["ITG_SECRET_ARGS"]) == {"api_key": "sk-SECRET"}
    run_dir = RunDir(tmp_path / "run")
    run_dir.welcome(host)
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 2
    assert "sk-SECRET" not in "".join(written)
    # it is the same host, also under another key
    (there,) = run_dir.hosts()
    other = Host.parse("openai,model_version=x,api_key=sk-2,max_retries=1")
    assert there.folder == host.folder == other.folder
    assert tabulate_args(host) == "model_version=x,api_key=***,max_retries=1"


def tabulate_args(host):
    document = Document(task="t", split="s", doc_id=0, video="v.mp4", question="q")
    outcome = Outcome(task="t", split="s", doc_id=0, answer="A", is_correct=True)
    cost = Cost(frames_sha="a" * 64, seconds=0.0, num_questions=0)
    given = answers.Answers(outcomes={document.key: outcome}, cost=cost)
    both = dict.fromkeys(("uniform", "grounded"), given)
    return tabulate(host, PLAN, [document], both, dict.fromkeys(both, 0)).args


@pytest.mark.parametrize("text", ["a b,api_key=SECRET", "x,loose,api_key=SECRET"])
def test_a_complaint_about_a_host_keeps_its_key(text):
    with pytest.raises(ItgError, match="--host") as caught:
        Host.parse(text)
    assert "SECRET" not in str(caught.value)
