import dataclasses
import json
import resource
from pathlib import Path

import pytest
from itg_data.errors import ItgError
from itg_data.jsonl import format_record, read_jsonl
from itg_data.sampling import SamplingConfig
from itg_eval import scores as scores_module
from itg_eval.cli import main
from itg_eval.records import Document, DocumentScores
from itg_eval.scores import Failure, score_documents
from itg_eval.settings import Settings
from itg_eval.shards import Line
from itg_model import FrameGrounder


@pytest.fixture(scope="module")
def grounder(grounder_dir) -> FrameGrounder:
    return FrameGrounder.from_pretrained(grounder_dir, "cpu")


@pytest.fixture
def settings(grounder_dir) -> Settings:
    return Settings(
        scorer="grounder",
        model=str(grounder_dir),
        model_sha256="0" * 64,
        dtype="float32",
        asked="context",
        rate_hz=1.0,
        max_frames=None,
        sampling_rule="lmms-eval",
        embeddings=False,
    )


class Watched:
    """The real scorer, and what it was asked."""

    def __init__(self, grounder: FrameGrounder, stop_after: int | None = None) -> None:
        self.grounder = grounder
        self.name = grounder.name
        self.max_frames = grounder.max_frames
        self.encoded: list[str] = []
        self.asked: list[str] = []
        self.stop_after = stop_after

    def encode(self, video, sampling):
        self.encoded.append(video)
        return self.grounder.encode(video, sampling)

    def score(self, video, question):
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(question)
        return self.grounder.score(video, question)


def read_scores(folder: Path) -> list[DocumentScores]:
    return list(read_jsonl(folder / "scores.jsonl", DocumentScores))


def test_every_video_is_decoded_once_and_scored_as_the_grounder_scores(
    documents, settings, grounder, tmp_path
):
    watched = Watched(grounder)
    outcome = score_documents(documents, settings, lambda: watched, tmp_path)
    assert (outcome.num_scored, outcome.failures, outcome.is_merged) == (9, (), True)
    assert watched.encoded == [documents[n].video for n in range(3)]
    rows = read_scores(tmp_path)
    assert [row.key for row in rows] == [document.key for document in documents]
    sampling = SamplingConfig(max_frames=64, rule="lmms-eval")
    for row, document in zip(rows, documents, strict=True):
        encoded = grounder.encode(document.video, sampling)
        assert row.scored == grounder.score(encoded, document.context)
        assert row.question_sha256 == document.question_sha256
        assert row.fps == 4.0


def test_the_question_alone_is_asked_where_that_is_wanted_or_there_is_no_more(
    documents, settings, grounder, tmp_path
):
    asked = dataclasses.replace(settings, asked="question")
    score_documents(documents[:1], asked, lambda: grounder, tmp_path / "a")
    assert read_scores(tmp_path / "a")[0].scored.question == "where is square 0"
    bare = dataclasses.replace(documents[0], context="")
    score_documents([bare], settings, lambda: grounder, tmp_path / "b")
    assert read_scores(tmp_path / "b")[0].scored.question == "where is square 0"


def test_what_is_scored_is_not_asked_again_and_the_scorer_not_even_loaded(
    documents, settings, grounder, tmp_path
):
    score_documents(documents, settings, lambda: grounder, tmp_path)
    before = (tmp_path / "scores.jsonl").read_bytes()

    def fail() -> FrameGrounder:
        raise AssertionError

    assert score_documents(documents, settings, fail, tmp_path).is_merged
    assert (tmp_path / "scores.jsonl").read_bytes() == before


def test_an_interrupted_run_goes_on_and_ends_as_one_that_was_not(
    documents, settings, grounder, tmp_path
):
    score_documents(documents, settings, lambda: grounder, tmp_path / "whole")
    first, second = Watched(grounder, stop_after=4), Watched(grounder)
    with pytest.raises(KeyboardInterrupt):
        score_documents(documents, settings, lambda: first, tmp_path / "cut")
    assert not (tmp_path / "cut" / "scores.jsonl").exists()
    score_documents(documents, settings, lambda: second, tmp_path / "cut")
    assert sorted(first.asked + second.asked) == sorted(d.context for d in documents)
    for name in ("scores.jsonl", "failed.jsonl", "results/toy.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_while_more_is_scored_there_is_no_file_of_fewer(documents, settings, grounder, tmp_path):
    score_documents(documents[:2], settings, lambda: grounder, tmp_path)
    watched = Watched(grounder, stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        score_documents(documents, settings, lambda: watched, tmp_path)
    assert not (tmp_path / "scores.jsonl").exists()
    assert score_documents(documents[:2], settings, lambda: watched, tmp_path).is_merged
    assert len(read_scores(tmp_path)) == 2


def test_a_torn_or_damaged_line_is_scored_again(documents, settings, grounder, tmp_path, caplog):
    score_documents(documents, settings, lambda: grounder, tmp_path)
    whole = (tmp_path / "scores.jsonl").read_bytes()
    shard = tmp_path / "shards" / "scores.rank0of1.jsonl"
    lines = shard.read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * 100 + b"\n"
    shard.write_bytes(b"".join(lines)[:-20])
    watched = Watched(grounder)
    assert score_documents(documents, settings, lambda: watched, tmp_path).is_merged
    assert len(watched.asked) == 2
    assert "scores.rank0of1.jsonl:3: " in caplog.text
    assert (tmp_path / "scores.jsonl").read_bytes() == whole
    # mended, not only passed over: the torn line does not run into the next one
    assert len(shard.read_bytes().splitlines()) == 10


def test_a_run_goes_on_with_another_number_of_processes(documents, settings, grounder, tmp_path):
    first = Watched(grounder, stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        score_documents(documents, settings, lambda: first, tmp_path)
    watched = [Watched(grounder), Watched(grounder)]
    outcomes = [
        score_documents(documents, settings, lambda w=w: w, tmp_path, rank, 2)
        for rank, w in enumerate(watched)
    ]
    assert [outcome.is_merged for outcome in outcomes] == [False, True]
    asked = first.asked + watched[0].asked + watched[1].asked
    assert sorted(asked) == sorted(d.context for d in documents)
    assert not set(watched[0].encoded) & set(watched[1].encoded)
    assert [row.key for row in read_scores(tmp_path)] == [d.key for d in documents]


def test_a_bad_video_is_named_and_stops_nothing(documents, settings, grounder, tmp_path, caplog):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    spoilt = [dataclasses.replace(d, video=str(bad)) if d.doc_id % 3 == 1 else d for d in documents]
    outcome = score_documents(spoilt, settings, lambda: grounder, tmp_path / "run")
    assert (outcome.num_scored, outcome.is_merged) == (6, True)
    assert [failure.doc_id for failure in outcome.failures] == [1, 4, 7]
    failures = list(read_jsonl(tmp_path / "run" / "failed.jsonl", Failure))
    assert {(f.video, f.reason.split(" (")[0]) for f in failures} == {
        (str(bad), "not a readable video")
    }
    assert f"{bad}: not a readable video" in caplog.text
    # tried again, it fails again, and is listed once
    score_documents(spoilt, settings, lambda: grounder, tmp_path / "run")
    shard = tmp_path / "run" / "shards" / "failed.rank0of1.jsonl"
    assert len(shard.read_bytes().splitlines()) == 3
    # mended, its questions are asked, and no others
    bad.write_bytes(Path(documents[1].video).read_bytes())
    watched = Watched(grounder)
    outcome = score_documents(spoilt, settings, lambda: watched, tmp_path / "run")
    assert len(watched.asked) == 3
    assert (outcome.num_scored, outcome.failures) == (9, ())
    assert (tmp_path / "run" / "failed.jsonl").read_bytes() == b""


@pytest.mark.parametrize("change", ["question", "context", "video"])
def test_a_document_that_changed_is_scored_again(change, documents, settings, grounder, tmp_path):
    score_documents(documents, settings, lambda: grounder, tmp_path)
    value = getattr(documents[1], change)
    changed = [dataclasses.replace(documents[0], **{change: value}), *documents[1:]]
    watched = Watched(grounder)
    score_documents(changed, settings, lambda: watched, tmp_path)
    assert len(watched.asked) == 1
    rows = read_scores(tmp_path)
    assert len(rows) == 9
    assert rows[0].answers(changed[0])
    assert rows[0].scored.question == changed[0].context


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "b", "model_sha256": "1" * 64}, "holds scores with model "),
        ({"model_sha256": "1" * 64}, "model_sha256 '000"),
        ({"rate_hz": 2.0}, r"rate_hz 1\.0, not 2\.0"),
        ({"sampling_rule": "train"}, "sampling_rule 'lmms-eval', not 'train'"),
        ({"asked": "question"}, "asked 'context', not 'question'"),
        ({"dtype": "bfloat16"}, "dtype 'float32', not 'bfloat16'"),
    ],
)
def test_scores_of_different_settings_are_never_mixed(
    change, message, documents, settings, grounder, tmp_path
):
    score_documents(documents[:1], settings, lambda: grounder, tmp_path)
    with pytest.raises(ItgError, match=message):
        score_documents(
            documents, dataclasses.replace(settings, **change), lambda: grounder, tmp_path
        )
    assert len(read_scores(tmp_path)) == 1


def test_two_commands_of_different_checkpoints_cannot_fill_one_folder(
    documents, settings, grounder, tmp_path
):
    other = dataclasses.replace(settings, model="other", model_sha256="1" * 64)

    def load_while_another_comes():
        # the first has claimed the folder and scored nothing yet
        with pytest.raises(ItgError, match="another process is making scores with model '/"):
            score_documents(documents, other, lambda: grounder, tmp_path)
        return Watched(grounder, stop_after=2)

    with pytest.raises(KeyboardInterrupt):
        score_documents(documents, settings, load_while_another_comes, tmp_path)
    with pytest.raises(ItgError, match="holds scores with model '/"):
        score_documents(documents, other, lambda: grounder, tmp_path)
    assert score_documents(documents, settings, lambda: grounder, tmp_path).is_merged


def test_a_line_made_with_other_settings_is_not_taken_over_whatever_the_folder_says(
    documents, settings, grounder, tmp_path
):
    score_documents(documents, settings, lambda: grounder, tmp_path)
    other = dataclasses.replace(settings, rate_hz=2.0)
    (tmp_path / "settings.json").write_bytes(format_record(other))
    watched = Watched(grounder)
    score_documents(documents, other, lambda: watched, tmp_path)
    assert len(watched.asked) == 9


def test_a_video_replaced_at_its_path_is_scored_again(documents, settings, grounder, tmp_path):
    video = tmp_path / "v.mp4"
    video.write_bytes(Path(documents[0].video).read_bytes())
    asked = [dataclasses.replace(documents[0], video=str(video)), documents[1]]
    score_documents(asked, settings, lambda: grounder, tmp_path / "run")
    video.write_bytes(Path(documents[2].video).read_bytes())
    watched = Watched(grounder)
    score_documents(asked, settings, lambda: watched, tmp_path / "run")
    assert watched.encoded == [str(video)]
    assert len(read_scores(tmp_path / "run")[0].scored.scores) == 8
    # one that has gone cannot be scored again: what was found in it stands
    video.unlink()
    outcome = score_documents(asked, settings, lambda: watched, tmp_path / "run")
    assert (outcome.num_scored, outcome.failures) == (2, ())


def test_scores_that_do_not_say_of_which_file_they_are_are_made_again_and_counted(
    documents, settings, grounder, tmp_path, caplog
):
    score_documents(documents[:2], settings, lambda: grounder, tmp_path)
    shard = tmp_path / "shards" / "scores.rank0of1.jsonl"
    unmarked = {"settings_sha256": None, "video_bytes": None, "video_mtime_ns": None}
    rows = [dataclasses.replace(row, **unmarked) for row in read_jsonl(shard, DocumentScores)]
    shard.write_bytes(b"".join(map(format_record, rows)))
    watched = Watched(grounder)
    score_documents(documents[:2], settings, lambda: watched, tmp_path)
    assert len(watched.asked) == 2
    assert "2 scores do not say of which file they are and are made again" in caplog.text


def test_what_is_held_of_a_line_is_its_place_and_not_its_scores(
    documents, settings, grounder, tmp_path
):
    score_documents(documents, settings, lambda: grounder, tmp_path)
    found = scores_module._find_scored(tmp_path / "shards", documents, settings)
    assert {type(line) for line in found.values()} == {Line}
    assert {field.name for field in dataclasses.fields(Line)} == {"path", "start", "size"}


def test_a_full_disk_is_named_with_the_shard(documents, settings, grounder, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(Watched):
        def score(self, video, question):
            scored = super().score(video, question)
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
            return scored

    try:
        with pytest.raises(ItgError, match=r"scores\.rank0of1\.jsonl: File too large"):
            score_documents(documents, settings, lambda: Filling(grounder), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_path_cannot_write_to_the_terminal(documents, settings, grounder, tmp_path, caplog):
    asked = [dataclasses.replace(documents[0], video="\x1b[2Jnone\n.mp4")]
    score_documents(asked, settings, lambda: grounder, tmp_path)
    assert r"\x1b[2Jnone\n.mp4: no such file" in caplog.text
    assert "\x1b" not in caplog.text


def test_scores_whose_settings_are_lost_are_not_built_on(documents, settings, grounder, tmp_path):
    score_documents(documents[:1], settings, lambda: grounder, tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ItgError, match=r"settings\.json: is missing, but there are scores"):
        score_documents(documents, settings, lambda: grounder, tmp_path)


def test_the_same_checkpoint_by_another_path_goes_on(documents, settings, grounder, tmp_path):
    score_documents(documents, settings, lambda: grounder, tmp_path)
    moved = dataclasses.replace(settings, model="elsewhere")
    assert score_documents(documents, moved, lambda: grounder, tmp_path).is_merged


def test_two_processes_cannot_write_one_shard(documents, settings, grounder, tmp_path):
    (tmp_path / "shards").mkdir()
    with (
        scores_module.ShardWriter(tmp_path / "shards", "scores", 0, 1),
        pytest.raises(ItgError, match="another process is writing it"),
    ):
        score_documents(documents, settings, lambda: grounder, tmp_path)


def test_documents_that_are_not_asked_for_any_more_stay_out(
    documents, settings, grounder, tmp_path
):
    score_documents(documents, settings, lambda: grounder, tmp_path)
    score_documents(documents[:2], settings, lambda: grounder, tmp_path)
    assert [row.doc_id for row in read_scores(tmp_path)] == [0, 1]
    assert len((tmp_path / "shards" / "scores.rank0of1.jsonl").read_bytes().splitlines()) == 9


def test_tasks_have_a_results_file_each(documents, settings, grounder, tmp_path):
    other = [dataclasses.replace(documents[0], task="other")]
    score_documents([*documents[:2], *other], settings, lambda: grounder, tmp_path)
    names = {p.name: len(p.read_text().splitlines()) for p in (tmp_path / "results").iterdir()}
    assert names == {"toy.jsonl": 2, "other.jsonl": 1}


@pytest.mark.parametrize("ranks", [("2", "2"), ("-1", "2"), ("x", "1"), ("0", "0")])
def test_senseless_ranks_are_refused(ranks, documents_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", ranks[0])
    monkeypatch.setenv("WORLD_SIZE", ranks[1])
    arguments = ["score", "--documents", str(documents_file), "--model", "itg-tiny"]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 2
    assert "RANK and WORLD_SIZE" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_scores_a_file_of_documents(documents_file, grounder_dir, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = ["score", "--documents", str(documents_file), "--model", str(grounder_dir)]
    arguments += ["--output", str(output), "--device", "cpu", "--limit", "2"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{output / 'scores.jsonl'}\n"
    assert "scored 2 of 2 questions" in captured.err
    assert len(read_scores(output)) == 2
    assert json.loads((output / "settings.json").read_text())["dtype"] == "float32"


def test_the_command_tells_by_its_exit_code_that_a_video_failed(
    documents, grounder_dir, tmp_path, capsys
):
    lines = [
        format_record(d) for d in (documents[0], dataclasses.replace(documents[1], video="no.mp4"))
    ]
    (tmp_path / "d.jsonl").write_bytes(b"".join(lines))
    arguments = ["score", "--documents", str(tmp_path / "d.jsonl"), "--model", str(grounder_dir)]
    assert main([*arguments, "--output", str(tmp_path / "run"), "--device", "cpu"]) == 1
    assert "1 questions about 1 videos have no scores" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name the questions by one of --task, --documents and --records"),
        (["--documents", "no.jsonl"], "no.jsonl: No such file"),
        (["--documents", "a", "--records", "b"], "by one of"),
        (["--documents", "DOCS", "--limit", "0"], "--limit must be >= 1, got 0"),
        (["--documents", "DOCS", "--rate-hz", "0"], "sampling.rate_hz must be finite"),
        (["--documents", "DOCS", "--max-frames", "0"], "sampling.max_frames must be >= 1"),
        (["--documents", "DOCS", "--device", "cuda:99"], "device cuda:99 was asked for"),
        (["--documents", "DOCS", "--model", "no/such/model"], "no/such/model: no such directory"),
        (["--documents", "DOCS", "--save-embeddings"], "embeds no questions"),
        (["--documents", "DOCS", "--split", "x"], "--split makes no difference with --documents"),
        (["--task", "t", "--split", "x"], "--split makes no difference with --task"),
        (["--documents", "DOCS", "--include-path", "x"], "--include-path makes no difference"),
        (["--records", "DOCS", "--include-path", "x"], "--include-path makes no difference"),
        (["--task", "t", "--include-path", "/none"], "--include-path /none: no such folder"),
    ],
)
def test_bad_input_exits_2_with_one_line(
    options, message, documents_file, grounder_dir, tmp_path, capsys
):
    options = [str(documents_file) if option == "DOCS" else option for option in options]
    arguments = ["score", "--model", str(grounder_dir), "--output", str(tmp_path / "run")]
    assert main([*arguments, "--device", "cpu", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_checkpoint_that_was_misspelt_does_not_claim_the_folder(
    documents_file, grounder_dir, tmp_path, capsys
):
    arguments = ["score", "--documents", str(documents_file), "--output", str(tmp_path / "run")]
    arguments += ["--device", "cpu", "--model"]
    assert main([*arguments, f"{grounder_dir}r"]) == 2
    assert main([*arguments, str(grounder_dir)]) == 0
    assert main([*arguments, f"{grounder_dir}r"]) == 2
    assert "holds scores with model" in capsys.readouterr().err


def test_records_become_documents(videos, grounder_dir, tmp_path):
    (tmp_path / "v.mp4").write_bytes(videos[0].read_bytes())
    row = {
        "schema_version": 1,
        "id": "a",
        "video": "v.mp4",
        "question": "where",
        "spans": [{"start_s": 1, "end_s": 2}],
        "split": "heldout",
        "provenance": {"annotator": "me"},
    }
    rows = [row | {"split": "train"}, row]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["score", "--records", str(tmp_path / "records.jsonl"), "--device", "cpu"]
    arguments += ["--model", str(grounder_dir), "--output", str(tmp_path / "o"), "--split"]
    assert main([*arguments, "none"]) == 2
    assert main([*arguments, "heldout"]) == 0
    (scored,) = read_scores(tmp_path / "o")
    assert scored.answers(
        Document(
            task="records",
            split="heldout",
            doc_id=1,
            video=str(tmp_path / "v.mp4"),
            question="where",
        )
    )
