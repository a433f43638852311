import dataclasses
import hashlib
import json

import numpy as np
import pytest
from itg_data.errors import ItgError
from itg_data.jsonl import read_jsonl, write_jsonl
from itg_data.records import FrameScores
from itg_eval.cli import main
from itg_eval.records import DocumentScores, DocumentSelection, Selections, hash_question
from itg_eval.selecting import OFFERED, select_document
from itg_model.policies import policy_info, policy_names, select_frames

VALUES = (0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.05, 0.6)
SELECTABLE = [name for name in policy_names() if set(policy_info(name).required) <= OFFERED]


def make_scores(values=VALUES, doc_id=0, **fields) -> DocumentScores:
    places = range(len(values))
    return DocumentScores(
        task="toy",
        split="test",
        doc_id=doc_id,
        question_sha256=hash_question("where"),
        fps=25.0,
        scored=FrameScores(
            video="v.mp4",
            question="where",
            model="m",
            sampling="lmms-eval-1hz-max512",
            source_idx=tuple(25 * i for i in places),
            time_s=tuple(0.5 * i for i in places),
            scores=tuple(values),
        ),
        **fields,
    )


@pytest.fixture
def scores_file(tmp_path):
    """Scores of three documents, one of few frames, with embeddings."""
    rng = np.random.default_rng(0)
    rows = []
    for doc_id, values in enumerate((VALUES, VALUES[::-1], VALUES[:3])):
        name = f"{doc_id}".zfill(64) + ".npy"
        (tmp_path / "embeddings").mkdir(exist_ok=True)
        np.save(tmp_path / "embeddings" / name, rng.normal(size=(len(values), 4)))
        query = tuple(rng.normal(size=4).tolist())
        rows.append(make_scores(values, doc_id, embeddings=name, query_embedding=query))
    write_jsonl(tmp_path / "scores.jsonl", rows)
    return tmp_path / "scores.jsonl"


def test_the_command_offers_every_policy_that_scores_of_frames_can_feed(capsys):
    for policy in SELECTABLE:
        # refused for the file, not for the policy
        assert main(["select", "--scores", "no.jsonl", "--policy", policy]) == 2
        assert "no.jsonl: No such file" in capsys.readouterr().err
    assert set(policy_names()) - set(SELECTABLE) == {"temporal-nms"}


@pytest.mark.parametrize("policy", SELECTABLE)
def test_a_policy_chooses_as_select_frames_does(policy, scores_file, tmp_path):
    output = tmp_path / "chosen.jsonl"
    arguments = ["select", "--scores", str(scores_file), "--policy", policy, "--top-k", "4"]
    assert main([*arguments, "--output", str(output)]) == 0
    selections = Selections.load(output)
    for row in read_jsonl(scores_file, DocumentScores):
        params = {
            "times_s": row.scored.time_s,
            "embeddings": np.load(tmp_path / "embeddings" / row.embeddings),
            "query_embedding": row.query_embedding,
        }
        params = {name: params[name] for name in policy_info(policy).arrays if name in params}
        chosen = selections[row.key]
        assert (chosen.seed is not None) is (policy == "q-frame")
        if chosen.seed is not None:
            params["seed"] = chosen.seed
        expected = select_frames(row.scored.scores, 4, policy, **params).tolist()
        assert len(expected) == min(4, len(row.scored.scores))
        assert chosen.source_idx == tuple(25 * i for i in expected)
        assert chosen.time_s == tuple(0.5 * i for i in expected)
        assert chosen.scores == tuple(row.scored.scores[i] for i in expected)
        assert (chosen.policy, chosen.top_k, chosen.fps) == (policy, 4, 25.0)


def test_parameters_go_to_the_policy_and_into_the_record(scores_file, capsys):
    arguments = ["select", "--scores", str(scores_file), "--policy", "min-gap", "--top-k", "2"]
    assert main([*arguments, "--policy-param", "min_gap_s=2"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 3
    assert '"policy": "min-gap(min_gap_s=2)"' in lines[0]
    assert '"source_idx": [25, 125]' in lines[0]
    assert captured.err == "itg-eval: chose frames for 3 questions\n"


def test_each_document_has_a_draw_of_its_own_that_its_record_tells_of():
    values = [0.5] * 64
    draws = [select_document(make_scores(values, n), "q-frame", 4, {"seed": 1}) for n in range(20)]
    assert len({draw.source_idx for draw in draws}) == 20
    assert {draw.policy for draw in draws} == {"q-frame(seed=1)"}
    # the same again, and another for another seed
    again = select_document(make_scores(values, 3), "q-frame", 4, {"seed": 1})
    assert again == draws[3]
    other = select_document(make_scores(values, 3), "q-frame", 4, {"seed": 2})
    assert other.source_idx != draws[3].source_idx


def test_a_seed_that_there_is_not_leaves_the_hash_of_a_selection_as_it_was():
    selection = select_document(make_scores(), "top-k", 2, {})
    fields = dataclasses.asdict(selection)
    del fields["seed"]
    line = json.dumps({"schema_version": 1, **fields}, sort_keys=True)
    assert Selections([selection]).sha256 == hashlib.sha256(line.encode()).hexdigest()
    drawn = dataclasses.replace(selection, seed=1)
    assert Selections([drawn]).sha256 != Selections([selection]).sha256


@pytest.mark.parametrize(
    ("options", "warns"),
    [
        (["--policy", "q-frame"], True),
        (["--policy", "q-frame", "--policy-param", "tau=0.05"], False),
        (["--policy", "top-k"], False),
    ],
)
def test_a_draw_to_which_the_scores_hardly_matter_is_warned_of(options, warns, scores_file, capsys):
    assert main(["select", "--scores", str(scores_file), "--output", "/dev/null", *options]) == 0
    assert ("drawn nearly at random" in capsys.readouterr().err) is warns


def test_fewer_frames_than_asked_for_are_all_taken_and_counted(scores_file, capsys):
    assert main(["select", "--scores", str(scores_file), "--top-k", "4"]) == 0
    captured = capsys.readouterr()
    assert '"source_idx": [0, 25, 50]' in captured.out.splitlines()[2]
    assert "; 1 have fewer than 4\n" in captured.err


def test_a_frame_without_a_score_comes_last_and_says_so():
    scores = make_scores((0.5, float("nan"), 0.7))
    assert select_document(scores, "top-k", 2, {}).source_idx == (0, 50)
    whole = select_document(scores, "top-k", 3, {})
    assert whole.source_idx == (0, 25, 50)
    assert whole.scores == (0.5, None, 0.7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-k", "0"], "k must be >= 1, got 0"),
        (["--policy", "aks", "--policy-param", "t9=1"], "aks takes NAME=VALUE with NAME one of"),
        (["--policy", "aks", "--policy-param", "depth=x"], "depth must be a whole number"),
        (["--output", "/no/such/file"], "--output /no/such/file: No such file"),
    ],
)
def test_bad_input_exits_2_with_one_line(options, message, scores_file, capsys):
    assert main(["select", "--scores", str(scores_file), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_policy_without_its_embeddings_says_how_to_get_them(tmp_path, capsys):
    write_jsonl(tmp_path / "s.jsonl", [make_scores()])
    arguments = ["select", "--scores", str(tmp_path / "s.jsonl"), "--policy", "mdp3"]
    assert main(arguments) == 2
    assert "toy/test/0 has none: score with --scorer text-image" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"no array", "short"])
def test_embeddings_that_do_not_fit_are_refused(content, scores_file, capsys):
    path = scores_file.parent / "embeddings" / ("0".zfill(64) + ".npy")
    path.unlink()
    if content == "short":
        np.save(path, np.zeros((2, 4)))
    elif content is not None:
        path.write_bytes(content)
    assert main(["select", "--scores", str(scores_file), "--policy", "mdp3"]) == 2
    assert "embeddings" in capsys.readouterr().err


def test_a_document_there_twice_is_refused(tmp_path, capsys):
    write_jsonl(tmp_path / "s.jsonl", [make_scores(), make_scores()])
    assert main(["select", "--scores", str(tmp_path / "s.jsonl")]) == 2
    assert "toy/test/0 is there twice" in capsys.readouterr().err


def test_a_window_policy_is_refused_with_the_reason():
    with pytest.raises(ItgError, match="windows"):
        select_document(make_scores(), "temporal-nms", 2, {})


def test_selections_are_records(scores_file, tmp_path):
    main(["select", "--scores", str(scores_file), "--output", str(tmp_path / "c.jsonl")])
    rows = list(read_jsonl(tmp_path / "c.jsonl", DocumentSelection))
    assert [dataclasses.asdict(row)["doc_id"] for row in rows] == [0, 1, 2]
