import json
from pathlib import Path

import affected
import pytest
import workspace


def member(name, *siblings):
    needed = dict.fromkeys(siblings, ">=0.1,<0.2")
    directory = Path("packages") / name
    return workspace.Member(name=name, version="0.1.0", directory=directory, siblings=needed)


MEMBERS = {
    m.name: m
    for m in [
        member("data"),
        member("kernels"),
        member("model", "data", "kernels"),
        member("train", "model"),
        member("eval", "model"),
    ]
}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["packages/train/src/train/loop.py"], ["train"]),
        (["packages/model/README.md"], ["model", "train", "eval"]),
        (["packages/data/pyproject.toml"], ["data", "model", "train", "eval"]),
        (["packages/eval/a.py", "packages/kernels/b.py"], ["kernels", "model", "train", "eval"]),
        (["README.md", "LICENSE"], []),
        (["README.md", "packages/eval/a.py"], ["eval"]),
        (["uv.lock"], list(MEMBERS)),
        (["tools/lockfile.py"], list(MEMBERS)),
        (["packages/new/pyproject.toml"], list(MEMBERS)),
        ([], []),
    ],
    ids=str,
)
def test_a_change_affects_the_package_and_its_dependents(files, names):
    assert affected.affected(files, MEMBERS) == names


def test_this_workspace_is_read_as_its_pyproject_files_declare():
    members = workspace.members()
    assert members["itg-data"].siblings == {}
    assert members["itg-model"].siblings.keys() == {"itg-data", "itg-kernels"}
    assert workspace.dependents({"itg-model"}, members) == {"itg-model", "itg-train", "itg-eval"}
    assert workspace.needed_by("itg-train", members) == {"itg-data", "itg-kernels", "itg-model"}
    assert workspace.needed_by("itg-data", members) == set()


def test_the_matrix_is_one_line_of_json(capsys):
    assert affected.main(["HEAD"]) == 0
    assert json.loads(capsys.readouterr().out) == {"package": []}


def test_a_branch_that_has_only_just_begun_affects_all(capsys):
    assert affected.main(["0" * 40]) == 0
    assert json.loads(capsys.readouterr().out) == {"package": list(workspace.members())}


def test_a_commit_that_a_forced_push_took_away_affects_all(capsys):
    assert affected.main(["5ca1ab1e" * 5]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"package": list(workspace.members())}
    assert "5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e is not in this clone: all packages" in err


@pytest.mark.parametrize("base", ["no-such-branch", "origin/no-such", "5ca1ab1e"])
def test_an_unknown_branch_exits_2(base, capsys):
    assert affected.main([base]) == 2
    assert f"{base}...HEAD" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("requirement", "name", "specifier"),
    [
        ("itg-data>=0.1,<0.2", "itg-data", ">=0.1,<0.2"),
        ("Itg_Data [annotate] ~= 0.1 ; python_version > '3'", "itg-data", "~= 0.1"),
        ("itg-data", "itg-data", ""),
    ],
)
def test_a_requirement_splits_into_name_and_range(tmp_path, requirement, name, specifier):
    for folder, needs in [("itg-data", []), ("user", [requirement])]:
        file = tmp_path / "packages" / folder / "pyproject.toml"
        file.parent.mkdir(parents=True)
        file.write_text(
            f'[project]\nname = "{folder}"\nversion = "1"\ndependencies = {json.dumps(needs)}\n'
        )
    assert workspace.members(tmp_path)["user"].siblings == {name: specifier}
