"""Requests without an answer: whose fault it is, what it costs, and what becomes of it later."""

import http.server
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from itg_data.annotate.config import ReplayConfig
from itg_data.annotate.openai_client import ServerConfig
from itg_data.annotate.records import Annotation, DroppedSample
from itg_data.annotate.requests import AnnotatorError
from itg_data.annotate.run import run
from itg_data.jsonl import read_jsonl

BAD = "Bad?"


def annotations(config) -> list[str]:
    return [a.id for a in read_jsonl(config.out / "annotations.jsonl", Annotation)]


def drops(config) -> dict[str, tuple[str, str]]:
    dropped = read_jsonl(config.out / "dropped.jsonl", DroppedSample)
    return {drop.id: (drop.reason, drop.detail) for drop in dropped}


def truncated(content: str | None) -> bytes:
    message = {"role": "assistant", "content": content, "reasoning_content": "hmm " * 50}
    choices = [{"finish_reason": "length", "message": message}]
    usage = {"prompt_tokens": 7, "completion_tokens": 1024}
    return json.dumps({"choices": choices, "usage": usage}).encode()


@pytest.fixture
def fail_bad_ones(server):
    """Has the server fail at questions that begin with `Bad?`, at one stage."""

    def fail(stage="retrieve", *, status=200, content: str | None = None, raw=None):
        def reply(asked):
            bad = asked.stage == stage and asked.inputs.get("question", "").startswith(BAD)
            return server.Reply(content, status, raw=raw) if bad else server.sensible(asked)

        server.reply = reply

    return fail


@pytest.fixture
def pairs(make_pair):
    """One good pair among thirteen bad ones."""
    bad = [make_pair(n, question=f"{BAD} {n}") for n in range(1, 14)]
    return [*bad[:7], make_pair(0), *bad[7:]]


def test_more_rejections_than_ten_make_a_set_and_are_asked_once(
    make_config, server, pairs, fail_bad_ones
):
    fail_bad_ones(status=400, content="context length exceeded")
    config = make_config(pairs)
    run(config)
    assert annotations(config) == ["q0"]
    assert {reason for reason, _ in drops(config).values()} == {"rejected_by_server"}
    num_asked = len(server.asked)
    run(config)
    assert len(server.asked) == num_asked
    assert len(drops(config)) == 13


def test_whether_a_server_takes_a_stage_is_tried_out_once_and_not_where_it_is_known(
    make_config, make_pair, server, pairs, fail_bad_ones
):
    def count_tries():
        return sum("What colour is the square?" in asked.text for asked in server.asked)

    fail_bad_ones("cues", status=400, content="context length exceeded")
    good_first = [make_pair(0), *(pair for pair in pairs if pair.id != "q0")]
    run(make_config(good_first, concurrency=1))
    assert count_tries() == 0
    all_bad = [pair for pair in pairs if pair.id != "q0"]
    run(make_config(all_bad, retry_rejected=True))
    assert count_tries() == 1


def test_a_resume_that_has_only_rejected_requests_left_comes_to_its_end(
    make_config, server, pairs, fail_bad_ones
):
    server.reply = lambda asked: (
        server.Reply("bad key", 401) if asked.stage == "retrieve" else server.sensible(asked)
    )
    config = make_config(pairs, concurrency=1)
    with pytest.raises(AnnotatorError, match="bad key"):
        run(config)
    fail_bad_ones(status=400, content="context length exceeded")
    run(make_config([pair for pair in pairs if pair.id != "q0"], concurrency=1))
    assert len(drops(config)) == 13


def test_rejections_of_one_stage_alone_end_the_run_and_are_not_held_against_a_mended_server(
    make_config, server, pairs
):
    server.reply = lambda asked: (
        server.Reply("takes no pictures", 400) if asked.num_pictures else server.sensible(asked)
    )
    config = make_config(pairs)
    with pytest.raises(AnnotatorError, match=r"rejects every caption request: .*takes no pictures"):
        run(config)
    server.reply = server.sensible
    run(config)
    assert drops(config) == {}


def test_what_was_rejected_is_asked_again_on_demand(make_config, server, pairs, fail_bad_ones):
    fail_bad_ones(status=400, content="context length exceeded")
    run(make_config(pairs))
    server.reply = server.sensible
    config = make_config(pairs, retry_rejected=True)
    run(config)
    assert drops(config) == {}


@pytest.mark.parametrize(
    ("failure", "complaint"),
    [
        ({"status": 500, "content": "internal error"}, "answers 500: .*internal error"),
        ({"raw": b'{"choices": []}'}, "does not speak the OpenAI protocol: no choice"),
    ],
)
def test_requests_that_always_fail_cost_their_own_pairs_and_are_asked_again_at_the_next_start(
    make_config, server, pairs, fail_bad_ones, failure, complaint
):
    fail_bad_ones(**failure)
    config = make_config(pairs, annotator=ServerConfig(base_url=server.base_url, max_retries=0))
    run(config)
    assert annotations(config) == ["q0"]
    reasons = drops(config)
    assert {reason for reason, _ in reasons.values()} == {"server_error"}
    assert "retrieve: the server " + complaint.split(":")[0] in reasons["q1"][1]
    server.reply = server.sensible
    run(config)
    assert drops(config) == {}
    assert len(annotations(config)) == 14


def test_a_finished_shard_with_a_failed_request_is_made_anew_at_the_next_start(
    make_config, make_pair, server, fail_bad_ones, monkeypatch
):
    monkeypatch.setattr("itg_data.annotate.shards.VIDEOS_PER_SHARD", 1)
    pairs = [make_pair(0, question=BAD), make_pair(1, video="short.mp4", question="Last?")]
    config = make_config(
        pairs, annotator=ServerConfig(base_url=server.base_url, max_retries=0), num_decoders=1
    )
    fail_bad_ones(status=500, content="internal error")
    failing = server.reply

    def stop(asked):
        if asked.inputs.get("question") != "Last?":
            return failing(asked)
        while not list(config.out.glob("shards-*/000000.jsonl")):
            time.sleep(0.01)
        return server.Reply("bad key", 401)

    server.reply = stop
    with pytest.raises(AnnotatorError, match="bad key"):
        run(config)
    server.reply = server.sensible
    run(config)
    assert drops(config) == {}


def test_a_server_that_fails_at_everything_from_some_time_on_ends_the_run(
    make_config, make_pair, server
):
    def die(asked):
        return server.sensible(asked) if asked.number < 6 else server.Reply("out of memory", 500)

    server.reply = die
    config = make_config(
        [make_pair(n) for n in range(3)],
        annotator=ServerConfig(base_url=server.base_url, max_retries=0),
    )
    for _ in range(2):
        with pytest.raises(AnnotatorError, match=r"answers 500: .*out of memory"):
            run(config)


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_an_answer_cut_off_before_it_began_is_no_refusal_and_is_not_final(
    make_config, server, pairs, fail_bad_ones, content
):
    fail_bad_ones("cues", raw=truncated(content))
    config = make_config(pairs)
    state = run(config)
    detail = "cues: cut off before it began, after 1024 tokens: raise --max-tokens"
    assert drops(config)["q1"] == ("truncated_answer", detail)
    assert state.tally.completion_tokens > 13 * 1024
    server.reply = server.sensible
    run(config)
    assert drops(config) == {}


@pytest.mark.parametrize(
    "failure",
    [
        {"status": 400, "content": "context length exceeded"},
        {"status": 500, "content": "internal error"},
        {"raw": truncated(None)},
    ],
    ids=["rejected", "failed", "truncated"],
)
@pytest.mark.parametrize("stage", ["cues", "retrieve", "check"])
def test_a_replay_makes_a_set_with_failures_again_byte_for_byte(
    make_config, server, pairs, fail_bad_ones, tmp_path, failure, stage
):
    fail_bad_ones(stage, **failure)
    config = make_config(pairs, annotator=ServerConfig(base_url=server.base_url, max_retries=0))
    run(config)
    assert len(drops(config)) == 13
    cassette = config.out / "ledger.sqlite"
    for name in ("again", "and again"):
        replay = ReplayConfig(cassette=cassette)
        again = make_config(pairs, out=tmp_path / name, annotator=replay)
        run(again)
        for file in ("annotations.jsonl", "records.jsonl", "dropped.jsonl", "README.md"):
            assert (again.out / file).read_bytes() == (config.out / file).read_bytes()
        cassette = again.out / "ledger.sqlite"


def test_a_cassette_from_before_failures_were_kept_is_replayed(make_config, make_pair, tmp_path):
    config = make_config([make_pair(0)])
    run(config)
    with closing(sqlite3.connect(config.out / "ledger.sqlite")) as ledger:
        ledger.execute("DROP TABLE failures")
    replay = ReplayConfig(cassette=config.out / "ledger.sqlite")
    again = make_config([make_pair(0)], out=tmp_path / "again", annotator=replay)
    run(again)
    assert annotations(again) == ["q0"]


@pytest.fixture
def odd_server() -> Iterator[Callable[[Callable[[http.server.BaseHTTPRequestHandler], None]], str]]:
    """Serves whatever a function writes; gives the address."""
    serving: list[http.server.ThreadingHTTPServer] = []

    def serve(write):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    write(self)
                except OSError:
                    self.close_connection = True

            def log_message(self, format, *args):
                """Keeps quiet."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        serving.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield serve
    for server in serving:
        server.shutdown()
        server.server_close()


def test_an_answer_that_comes_byte_by_byte_for_ever_is_a_time_out(
    make_config, make_pair, odd_server
):
    def dribble(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while True:
            handler.wfile.write(b"1\r\n\n\r\n")
            handler.wfile.flush()
            time.sleep(0.05)

    server = ServerConfig(base_url=odd_server(dribble), max_retries=0, timeout_s=0.3)
    began_s = time.monotonic()
    with pytest.raises(AnnotatorError, match=r"does not answer \(no whole answer in 0.3 s\)"):
        run(make_config([make_pair(0)], annotator=server))
    assert time.monotonic() - began_s < 20


def test_an_answer_without_end_is_cut_off_before_it_fills_the_memory(
    make_config, make_pair, odd_server, monkeypatch
):
    monkeypatch.setattr("itg_data.annotate.bounded_http.MAX_BODY_BYTES", 1 << 20)
    sent: list[int] = []

    def pour(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        for _ in range(1 << 10):
            sent.append(handler.wfile.write(bytes(1 << 16)))

    server = ServerConfig(base_url=odd_server(pour), max_retries=0)
    with pytest.raises(AnnotatorError, match="the answer is larger than 1 MiB"):
        run(make_config([make_pair(0)], annotator=server))
    assert sum(sent) < 64 << 20
