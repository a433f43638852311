import asyncio
import json
import re
import socket
import sys
import time
from pathlib import Path

import pytest
from itg_data import cli
from itg_data.annotate.config import ReplayConfig
from itg_data.annotate.ledger import Ledger
from itg_data.annotate.openai_client import ServerConfig
from itg_data.annotate.records import Annotation, DroppedSample
from itg_data.annotate.requests import AnnotatorError, Answer, Sampler
from itg_data.annotate.run import RunError, run
from itg_data.errors import ItgError, RecordError
from itg_data.jsonl import read_jsonl
from itg_data.records import GroundingRecord
from itg_data.sets import SetFolder
from itg_data.sets.check import check_set
from itg_data.video import open_video

MODEL = "told-what-to-say"


def annotations(config) -> list[Annotation]:
    return list(read_jsonl(config.out / "annotations.jsonl", Annotation))


def drops(config) -> dict[str, str]:
    return {d.id: d.reason for d in read_jsonl(config.out / "dropped.jsonl", DroppedSample)}


def test_videos_and_questions_become_a_set_that_training_can_read(make_config, make_pair):
    config = make_config([make_pair(0, split="train"), make_pair(1, video="short.mp4")])
    state = run(config)
    first, second = annotations(config)
    assert (state.num_done, dict(state.dropped)) == (2, {})
    assert first.question_type == "semantic_motion"
    assert first.candidate_s == first.label_s == (0, 1, 2, 3, 4)
    assert len(first.captions) == 3
    assert second.label_s == (0, 1)
    records = list(read_jsonl(config.out / "records.jsonl", GroundingRecord))
    assert [(r.spans[0].start_s, r.spans[0].end_s) for r in records] == [(0, 5), (0, 2)]
    assert records[0].split == "train"
    with open_video(config.out / records[0].video) as video:
        assert video.num_frames == 300
    assert not list(config.out.glob("shards-*"))


@pytest.mark.parametrize("clip", range(4))
def test_labels_where_a_frame_stays_on_screen_make_a_sound_set(
    make_config, make_pair, server, encode_video, tmp_path, clip
):
    # the frame that comes at 2.96 s stays until 15 s, through the second and the third clip
    times_ms = [*range(0, 3000, 40), *range(15_000, 17_000, 40)]
    (tmp_path / "films").mkdir()
    encode_video(tmp_path / "films/still.mp4", num_frames=len(times_ms), times_ms=times_ms)

    def choose(asked):
        chosen = {"explanation": "", "clips": [clip]}
        return chosen if asked.stage == "retrieve" else server.sensible(asked)

    server.reply = choose
    config = make_config([make_pair(0, video="still.mp4")], videos=tmp_path / "films")
    run(config)
    report = check_set(SetFolder(config.out), config.out)
    assert not [str(finding) for finding in report.findings if finding.is_fault]
    assert report.statistics.num_samples == 1


def test_pairs_with_the_same_cues_share_their_captions(make_config, make_pair, server):
    config = make_config([make_pair(n) for n in range(4)])
    run(config)
    assert server.stages == {"cues": 4, "caption": 3, "retrieve": 4, "classify": 4, "check": 4}


def test_a_finished_run_that_is_started_again_asks_nothing(make_config, make_pair, server):
    config = make_config([make_pair(n) for n in range(2)])
    run(config)
    before = (config.out / "annotations.jsonl").read_bytes()
    num_asked = len(server.asked)
    state = run(config)
    assert len(server.asked) == num_asked
    assert state.tally.num_asked == 0
    assert (config.out / "annotations.jsonl").read_bytes() == before


def test_a_pair_that_is_added_later_costs_only_its_own_requests(make_config, make_pair, server):
    run(make_config([make_pair(0)]))
    run(make_config([make_pair(0), make_pair(1)]))
    assert server.stages == {"cues": 2, "caption": 3, "retrieve": 2, "classify": 2, "check": 2}


def test_another_seed_asks_anew(make_config, make_pair, server):
    run(make_config([make_pair(0)]))
    num_asked = len(server.asked)
    run(make_config([make_pair(0)], sampler=Sampler(model="told-what-to-say", seed=1)))
    assert len(server.asked) == 2 * num_asked
    assert {asked.body["seed"] for asked in server.asked} == {0, 1}


def test_a_replayed_ledger_makes_the_same_set_without_a_server(make_config, make_pair, tmp_path):
    config = make_config([make_pair(n) for n in range(2)])
    run(config)
    replay = ReplayConfig(cassette=config.out / "ledger.sqlite")
    again = make_config([make_pair(n) for n in range(2)], out=tmp_path / "again", annotator=replay)
    run(again)
    for name in ("annotations.jsonl", "records.jsonl", "dropped.jsonl"):
        assert (again.out / name).read_bytes() == (config.out / name).read_bytes()


def test_a_cassette_without_the_answer_ends_the_run_and_says_what_it_holds(
    make_config, make_pair, tmp_path
):
    config = make_config([make_pair(0)])
    run(config)
    replay = ReplayConfig(cassette=config.out / "ledger.sqlite")
    other = make_config([make_pair(7)], out=tmp_path / "other", annotator=replay)
    with pytest.raises(AnnotatorError, match=r"holds no answer .* recorded with told-what-to-say"):
        run(other)


def test_a_file_that_is_no_cassette_is_refused(make_config, make_pair, tmp_path):
    (tmp_path / "notes.txt").write_text("no database, and long enough to be seen as one" * 99)
    config = make_config([make_pair(0)], annotator=ReplayConfig(cassette=tmp_path / "notes.txt"))
    with pytest.raises(ItgError, match=r"notes.txt: file is not a database"):
        run(config)


def test_a_video_is_opened_and_decoded_once_for_all_of_its_pairs(
    make_config, make_pair, monkeypatch
):
    opened: list[str] = []
    read: list[int] = []

    def count(path, **options):
        opened.append(Path(path).name)
        video = open_video(path, **options)
        real_read = video.read
        monkeypatch.setattr(
            video, "read", lambda idx: (read.extend(idx.tolist()), real_read(idx))[1]
        )
        return video

    monkeypatch.setattr("itg_data.annotate.frames.open_video", count)
    run(make_config([make_pair(n) for n in range(3)]))
    assert opened == ["long.mp4"]
    assert read == sorted(set(read))
    assert set(range(0, 300, 25)) < set(read)


def test_the_set_does_not_depend_on_who_is_done_first(make_config, make_pair, tmp_path):
    pairs = [make_pair(n, video=("long.mp4", "short.mp4")[n % 2]) for n in range(6)]
    one = make_config(pairs, concurrency=1, num_decoders=1)
    many = make_config(pairs, out=tmp_path / "many", concurrency=16, num_decoders=4)
    run(one)
    run(many)
    assert [a.id for a in annotations(one)] == ["q0", "q2", "q4", "q1", "q3", "q5"]
    assert annotations(one) == annotations(many)


def test_two_runs_may_not_write_to_one_folder(make_config, make_pair, server):
    config = make_config([make_pair(0)])
    complaints: list[str] = []

    def start_another(_state):
        if not complaints:
            with pytest.raises(RunError) as caught:
                run(config)
            complaints.append(str(caught.value))

    run(config, start_another)
    assert "another run is writing here" in complaints[0]


def test_an_id_that_is_there_twice_is_refused_before_anything_is_asked(
    make_config, make_pair, server
):
    with pytest.raises(RecordError, match=r"qa.jsonl:2: id 'q0' is there twice"):
        run(make_config([make_pair(0), make_pair(0)]))
    assert not server.asked


def test_no_api_key_is_written_down(make_config, make_pair, server):
    secret = ServerConfig(base_url=server.base_url, api_key="sk-secret")
    config = make_config([make_pair(0)], annotator=secret)
    run(config)
    described = json.loads((config.out / "config.json").read_text())
    assert described["sampler"]["model"] == "told-what-to-say"
    assert not any(b"sk-secret" in path.read_bytes() for path in config.out.glob("*.*"))
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer sk-secret"}


@pytest.mark.parametrize("key", ["sk-secret\n", "sk-sécret"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(
    make_config, make_pair, capsys, monkeypatch, key
):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    config = make_config([make_pair(0)])
    assert cli.main(arguments(config, "--base-url=http://x/v1")) == 2
    complaint = capsys.readouterr().err
    assert "api_key must be printable ASCII" in complaint
    assert "cret" not in complaint


@pytest.mark.parametrize("secret", ["me:hunter2@", "hunter2@"])
def test_no_password_in_an_address_is_written_down_or_shown(make_config, make_pair, server, secret):
    address = server.base_url.replace("://", f"://{secret}") + "?token=hunter2"
    config = make_config([make_pair(0)], annotator=ServerConfig(base_url=address, max_retries=0))
    server.reply = lambda asked: server.Reply("bad key", 401)
    with pytest.raises(AnnotatorError) as caught:
        run(config)
    assert str(caught.value).startswith(f"{server.base_url} answers 401")
    assert "hunter2" not in str(caught.value)
    described = (config.out / "config.json").read_text()
    assert "hunter2" not in described
    assert json.loads(described)["annotator"]["base_url"] == server.base_url


@pytest.mark.parametrize(
    "address", ["http://me:hunter2@", "ftp://me:hunter2@x", "http://me:hunter2@x:0?k=hunter2"]
)
def test_no_password_in_an_address_that_is_none_is_shown(address):
    with pytest.raises(ValueError, match="base_url must") as caught:
        ServerConfig(base_url=address)
    assert "hunter2" not in str(caught.value)


def test_a_dead_server_ends_the_run_with_one_line_and_the_next_run_goes_on(
    make_config, make_pair, server
):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        config = make_config([make_pair(0)], annotator=ServerConfig(base_url=nobody, max_retries=0))
        with pytest.raises(AnnotatorError, match=r"does not answer .* start again"):
            run(config)
    run(make_config([make_pair(0)]))
    assert len(annotations(config)) == 1


def test_a_server_that_dies_on_the_way_is_asked_nothing_twice(make_config, make_pair, server):
    def die(asked):
        if asked.number >= 6:
            return server.Reply("out of memory", 500)
        if asked.number >= 3:
            # answered only after others have failed: such answers are kept like any other
            time.sleep(0.3)
        return server.sensible(asked)

    pairs = [make_pair(n) for n in range(3)]
    server.reply = die
    config = make_config(pairs, annotator=ServerConfig(base_url=server.base_url, max_retries=0))
    with pytest.raises(AnnotatorError, match=r"answers 500: .*out of memory"):
        run(config)
    num_answered = sum(server.answered.values())
    assert num_answered == 6
    server.reply = server.sensible
    state = run(config)
    assert state.tally.num_asked == 15 - num_answered
    assert set(server.answered.values()) == {1}


def test_the_ledger_is_flushed_answer_by_answer(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    answer = Answer(text="{}", prompt_tokens=1, completion_tokens=2)
    asyncio.run(ledger.store("key", "cues", "model", answer))
    # a second connection sees what a killed process would have left
    assert Ledger(tmp_path / "ledger.sqlite", read_only=True).get("key") == answer


def arguments(config, *more: str) -> list[str]:
    told = {"videos": config.videos, "qa": config.qa, "out": config.out, "model": MODEL}
    return ["annotate", *(f"--{name}={value}" for name, value in told.items()), *more]


def test_the_command_prints_a_summary_and_exits_with_0(make_config, make_pair, server, capsys):
    config = make_config([make_pair(0), make_pair(1, video="missing.mp4")])
    prices = "--usd-per-million-prompt-tokens=1000"
    assert cli.main(arguments(config, f"--base-url={server.base_url}", prices)) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "pairs": 2,
        "annotated": 1,
        "dropped": {"unreadable_video": 1},
        "asked": 7,
        "mended": 0,
        "from_ledger": 0,
        "prompt_tokens": 70,
        "completion_tokens": 14,
        "cost_usd": pytest.approx(0.07),
    }
    last_line = r"annotate: 2 of 2 pairs, 1 dropped, \d+\.\d requests/s, \$0\.07"
    assert re.fullmatch(last_line, err.splitlines()[-1])


def test_a_dry_run_counts_the_calls_that_a_run_then_makes(make_config, make_pair, server, capsys):
    distinct = [make_pair(0), make_pair(1, video="short.mp4")]
    config = make_config([*distinct, make_pair(2, video="missing.mp4")])
    assert cli.main(arguments(config, f"--base-url={server.base_url}", "--dry-run")) == 0
    told = json.loads(capsys.readouterr().out)
    assert not server.asked
    assert not config.out.exists()
    run(config)
    assert told["num_calls"] == dict(server.stages)
    assert (told["num_videos"], told["num_unreadable"], told["num_clips"]) == (3, 1, 4)
    assert told["prompt_tokens"] > 1000


@pytest.mark.parametrize(
    ("more", "exit_code", "complaint"),
    [
        ((), 2, "say who answers: one of --base-url, --local and --replay"),
        (("--base-url=http://x/v1", "--local=model"), 2, "say who answers"),
        (("--base-url=ftp://x",), 2, "base_url must start with http"),
        (("--base-url=http://x/v1", "--videos=none"), 2, "--videos must be a folder, got none"),
        (("--base-url=http://x/v1", "--videos=none", "--dry-run"), 2, "must be a folder, got none"),
        (("--base-url=http://x/v1", "--qa=/dev/null"), 2, "/dev/null: is no file"),
        (("--base-url=http://x/v1", "--qa=none"), 2, "none: No such file"),
        (("--base-url=http://x/v1", f"--seed={2**63}"), 2, "seed must be an integer of 64 bits"),
        (
            ("--base-url=http://x/v1", "--usd-per-million-prompt-tokens=nan"),
            2,
            "usd_per_million_prompt_tokens must be >= 0 and finite, got nan",
        ),
        (("--base-url=http://[::1",), 2, "base_url must name a host"),
        (("--base-url=http://",), 2, "base_url must name a host"),
        (("--base-url=http://x:99999/v1",), 2, "base_url must name a host"),
        (("--base-url=http://x/v1", "--concurrency=0"), 2, "concurrency must be >= 1, got 0"),
        (("--replay=none.sqlite",), 1, "none.sqlite: unable to open"),
    ],
)
def test_bad_input_is_one_line(make_config, make_pair, capsys, more, exit_code, complaint):
    config = make_config([make_pair(0)])
    assert cli.main(arguments(config, *more)) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = (line for line in err.splitlines() if line.startswith("itg-data annotate: "))
    assert complaint in line


def test_without_the_extra_one_line_names_it(make_config, make_pair, capsys, monkeypatch):
    config = make_config([make_pair(0)])
    monkeypatch.delitem(sys.modules, "itg_data.annotate.run")
    monkeypatch.delitem(sys.modules, "itg_data.sets.parquet", raising=False)
    monkeypatch.delitem(sys.modules, "itg_data.sets.derive", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.main(arguments(config, "--base-url=http://x/v1")) == 2
    assert "pyarrow is missing: pip install 'itg-data[annotate]'" in capsys.readouterr().err
