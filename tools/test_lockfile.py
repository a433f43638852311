import io
import shutil
import subprocess
import sys
from pathlib import Path

import lockfile
import pytest

ROOT = Path(__file__).resolve().parents[1]

COMPLETED = """\
version = 1
revision = 5
requires-python = ">=3.11"

[[package]]
name = "alpha"
version = "1.0"
source = { registry = "https://mirror.example/simple" }
dependencies = [
    { name = "beta", version = "2.0+cpu", source = { registry = "https://mirror.example/simple" } },
]
sdist = { url = "https://mirror.example/a/b/alpha-1.0.tar.gz", hash = "sha256:aa", size = 10 }
wheels = [
    { url = "https://mirror.example/c/alpha-1.0-py3-none-any.whl?x=1/2#y", hash = "sha256:ab" },
]

[[package]]
name = "beta"
version = "2.0+cpu"
source = { registry = "https://mirror.example/simple" }
wheels = [
    { url = "https://mirror.example/d/beta-2.0%2Bcpu-py3-none-any.whl", hash = "sha256:b0" },
]

[[package]]
name = "ours"
version = "0.1.0"
source = { editable = "packages/ours" }
dependencies = [
    { name = "alpha" },
]

[package.dev-dependencies]
test = [
    { name = "beta" },
]

[package.metadata]
requires-dist = [
    { name = "alpha", specifier = ">=1" },
]

[package.metadata.requires-dev]
test = [{ name = "beta" }]

[[package]]
name = "zeta"
version = "0.1.0"
source = { editable = "packages/zeta" }

[package.metadata]
requires-dist = [{ name = "alpha" }]
"""

NEUTRAL = """\
version = 1
revision = 5
requires-python = ">=3.11"

[[package]]
name = "alpha"
version = "1.0"
source = { registry = "index" }
dependencies = [
    { name = "beta", version = "2.0+cpu", source = { registry = "index" } },
]
sdist = { filename = "alpha-1.0.tar.gz", hash = "sha256:aa", size = 10 }
wheels = [
    { filename = "alpha-1.0-py3-none-any.whl", hash = "sha256:ab" },
]

[[package]]
name = "beta"
version = "2.0+cpu"
source = { registry = "index" }
wheels = [
    { filename = "beta-2.0+cpu-py3-none-any.whl", hash = "sha256:b0" },
]

[[package]]
name = "ours"
version = "0.1.0"
source = { editable = "packages/ours" }
dependencies = [
    { name = "alpha" },
]

[package.dev-dependencies]
test = [
    { name = "beta" },
]

[[package]]
name = "zeta"
version = "0.1.0"
source = { editable = "packages/zeta" }
"""


@pytest.fixture
def repo(tmp_path):
    (tmp_path / ".gitattributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    (tmp_path / "uv.lock").write_text(NEUTRAL)
    (tmp_path / "tools").mkdir()
    shutil.copy(lockfile.__file__, tmp_path / "tools")
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    git(tmp_path, "config", "user.name", "Tester")
    git(tmp_path, "config", "user.email", "tester@mirror.example")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "Lock")
    return tmp_path


def upgrade(repo):
    (repo / "uv.lock").write_text(COMPLETED.replace("sha256:aa", "sha256:a0"))
    if "clean" not in git(repo, "config", "--list"):
        lockfile.main(["neutral", str(repo / "uv.lock")])
    git(repo, "commit", "--quiet", "-am", "Upgrade")


def git(repo, *arguments):
    command = ["git", *arguments]
    return subprocess.run(command, cwd=repo, check=True, capture_output=True, text=True).stdout


def test_the_neutral_form_keeps_everything_but_addresses_and_metadata():
    assert lockfile.neutral(COMPLETED.encode()).decode() == NEUTRAL


def test_a_neutral_lock_stays_as_it_is():
    assert lockfile.neutral(NEUTRAL.encode()).decode() == NEUTRAL


def test_this_repository_s_lock_has_a_neutral_form_that_names_no_address():
    lock = (ROOT / "uv.lock").read_bytes()
    assert lockfile.addresses(lockfile.neutral(lock)) == []
    assert lockfile.differences(lockfile.neutral(lock), lock) == []


def test_a_dependency_that_is_an_address_keeps_it_and_is_reported():
    direct = b'source = { url = "https://mirror.example/x-1.whl" }\n'
    assert lockfile.neutral(direct) == direct
    assert lockfile.addresses(direct) == [f"line 1: {direct.decode().strip()}"]


FROM_FOLDER = """\
version = 1
revision = 5
requires-python = ">=3.11"

[[package]]
name = "alpha"
version = "1.0+a.b"
source = { registry = "/home/x/my wheels#1" }
dependencies = [
    { name = "beta", version = "2.0", source = { registry = "../wheels" } },
]
sdist = { path = "alpha-1.0+a.b.tar.gz" }
wheels = [
    { path = "/home/x/my wheels#1/alpha-1.0+a.b-py3-none-any.whl" },
]
"""


def test_folders_of_wheels_are_taken_out_as_indexes_are():
    lock = lockfile.neutral(FROM_FOLDER.encode())
    assert lock.decode() == (
        FROM_FOLDER.replace("/home/x/my wheels#1/", "")
        .replace("/home/x/my wheels#1", "index")
        .replace("../wheels", "index")
        .replace("{ path =", "{ filename =")
    )
    assert lockfile.addresses(FROM_FOLDER.encode()) != []
    assert lockfile.addresses(lock) == []
    assert lockfile.differences(lock, FROM_FOLDER.encode()) == []


def test_a_dependency_that_is_a_file_keeps_its_path():
    direct = b'source = { path = "vendor/x-1-py3-none-any.whl" }\n'
    assert lockfile.neutral(direct) == direct


def test_check_refuses_a_file_without_a_hash_and_says_how_to_get_one(repo, capsys):
    (repo / "uv.lock").write_bytes(lockfile.neutral(FROM_FOLDER.encode()))
    git(repo, "commit", "--quiet", "-am", "Lock, from a folder of wheels")
    assert lockfile.main(["check", str(repo / "uv.lock")]) == 1
    said = capsys.readouterr().out
    assert "no hash for alpha-1.0+a.b-py3-none-any.whl, alpha-1.0+a.b.tar.gz" in said
    assert "Without find-links, run `uv lock` and commit" in said


def test_conflict_markers_of_a_merge_survive():
    conflict = "[package.metadata]\nx = 1\n<<<<<<< ours\na\n=======\nb\n>>>>>>> theirs\n"
    markers = "<<<<<<< ours\na\n=======\nb\n>>>>>>> theirs\n"
    assert lockfile.neutral(conflict.encode()).decode() == markers


def test_a_completed_lock_agrees_with_its_neutral_form():
    assert lockfile.differences(NEUTRAL.encode(), COMPLETED.encode()) == []


def test_another_size_or_upload_time_is_no_difference():
    other = COMPLETED.replace("size = 10", 'size = 11, upload-time = "2026-01-01T00:00:00Z"')
    assert lockfile.differences(NEUTRAL.encode(), other.encode()) == []


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('name = "alpha"\nversion = "1.0"', 'name = "alpha"\nversion = "1.1"', "alpha: committed"),
        ("sha256:aa", "sha256:a0", "alpha 1.0: alpha-1.0.tar.gz is sha256:aa as committed"),
        ("sha256:b0", "sha256:b1", "beta 2.0+cpu: beta-2.0+cpu-py3-none-any.whl is sha256:b0"),
        ('{ name = "alpha" },', '{ name = "beta" },', "ours 0.1.0: dependencies: committed [{"),
        ('name = "zeta"', 'name = "eta"', "eta: committed absent, completed 0.1.0"),
        (
            '">=3.11"',
            '">=3.12"',
            "the lock's head: requires-python: committed >=3.11, completed >=3.12",
        ),
    ],
)
def test_a_difference_names_the_package(old, new, sentence):
    assert old in COMPLETED
    found = lockfile.differences(NEUTRAL.encode(), COMPLETED.replace(old, new).encode())
    assert any(line.startswith(sentence) for line in found), found


def test_a_wheel_that_the_index_lacks_is_a_difference():
    fewer = COMPLETED.replace("sdist = {", "other = {")
    found = lockfile.differences(NEUTRAL.encode(), fewer.encode())
    assert "alpha 1.0: alpha-1.0.tar.gz is sha256:aa as committed, absent as completed" in found


def test_check_passes_on_a_completed_lock_and_fails_on_a_tampered_one(repo, capsys):
    lock = repo / "uv.lock"
    lock.write_text(COMPLETED)
    assert lockfile.main(["check", str(lock)]) == 0
    assert "agrees with HEAD:uv.lock in versions and hashes (4 packages)" in capsys.readouterr().out
    lock.write_text(COMPLETED.replace("sha256:b0", "sha256:b1"))
    assert lockfile.main(["check", str(lock)]) == 1
    assert "beta 2.0+cpu: beta-2.0+cpu-py3-none-any.whl" in capsys.readouterr().out


def test_check_says_so_where_there_is_nothing_to_compare(repo, capsys):
    assert lockfile.main(["check", str(repo / "uv.lock")]) == 0
    assert "nothing to compare" in capsys.readouterr().out


def test_check_fails_on_a_committed_lock_that_names_an_index(repo, capsys):
    (repo / "uv.lock").write_text(COMPLETED)
    git(repo, "commit", "--quiet", "-am", "Lock, by hand and without the filter")
    assert lockfile.main(["check", str(repo / "uv.lock")]) == 1
    assert "names an index or an address" in capsys.readouterr().out


def test_check_compares_with_a_given_file(tmp_path):
    (tmp_path / "uv.lock").write_text(COMPLETED)
    (tmp_path / "neutral.lock").write_text(NEUTRAL)
    arguments = [str(tmp_path / "uv.lock"), "--against", str(tmp_path / "neutral.lock")]
    assert lockfile.main(["check", *arguments]) == 0


def test_check_exits_2_on_a_missing_lock_or_repository(tmp_path, capsys):
    assert lockfile.main(["check", str(tmp_path / "uv.lock")]) == 2
    (tmp_path / "uv.lock").write_text(COMPLETED)
    assert lockfile.main(["check", str(tmp_path / "uv.lock")]) == 2
    assert "git show HEAD:./uv.lock:" in capsys.readouterr().err


def test_neutral_rewrites_a_file_in_place(tmp_path):
    (tmp_path / "uv.lock").write_text(COMPLETED)
    assert lockfile.main(["neutral", str(tmp_path / "uv.lock")]) == 0
    assert (tmp_path / "uv.lock").read_text() == NEUTRAL


def test_neutral_filters_stdin_byte_for_byte(monkeypatch, capfdbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\r\n")))
    assert lockfile.main(["neutral"]) == 0
    assert capfdbinary.readouterr().out == b"\xff\r\n"


def test_without_setup_a_completed_lock_is_a_change_for_git(repo):
    (repo / "uv.lock").write_text(COMPLETED)
    assert git(repo, "status", "--porcelain") == " M uv.lock\n"


def test_after_setup_a_completed_lock_is_no_change_for_git(repo):
    lockfile.setup(repo)
    assert git(repo, "status", "--porcelain") == ""
    (repo / "uv.lock").write_text(COMPLETED)
    assert git(repo, "status", "--porcelain") == ""
    assert git(repo, "diff") == ""


def test_setup_may_come_after_the_lock_was_completed_and_twice(repo):
    (repo / "uv.lock").write_text(COMPLETED)
    lockfile.setup(repo)
    lockfile.setup(repo)
    assert git(repo, "status", "--porcelain") == ""


def test_after_setup_a_changed_version_is_still_a_change(repo):
    lockfile.setup(repo)
    (repo / "uv.lock").write_text(COMPLETED.replace("1.0", "1.1"))
    assert git(repo, "status", "--porcelain") == " M uv.lock\n"


def test_after_setup_every_commit_of_a_completed_lock_is_neutral(repo):
    lockfile.setup(repo)
    upgrade(repo)
    assert git(repo, "show", "HEAD:uv.lock") == NEUTRAL.replace("sha256:aa", "sha256:a0")


def test_after_setup_a_completed_lock_does_not_stand_in_a_merge_s_way(repo):
    lockfile.setup(repo)
    git(repo, "checkout", "--quiet", "-b", "upgrade")
    upgrade(repo)
    git(repo, "checkout", "--quiet", "main")
    (repo / "uv.lock").write_text(COMPLETED)
    git(repo, "merge", "--quiet", "upgrade")
    assert (repo / "uv.lock").read_text() == NEUTRAL.replace("sha256:aa", "sha256:a0")
    (repo / "uv.lock").write_text(COMPLETED.replace("sha256:aa", "sha256:a0"))
    assert git(repo, "status", "--porcelain") == ""


def test_after_setup_two_lines_of_work_merge_beside_a_neutral_lock(repo):
    lockfile.setup(repo)
    for branch, name in (("one", "a.txt"), ("two", "b.txt")):
        git(repo, "checkout", "--quiet", "-b", branch, "main")
        (repo / name).write_text("work\n")
        git(repo, "add", ".")
        git(repo, "commit", "--quiet", "-m", name)
    git(repo, "merge", "--quiet", "--no-edit", "one")
    (repo / "uv.lock").write_text(COMPLETED)
    assert git(repo, "status", "--porcelain") == ""


def test_setup_replaces_its_own_hooks_of_before(repo):
    lockfile.setup(repo)
    hook = repo / ".git" / "hooks" / "post-index-change"
    current = hook.read_text()
    hook.write_text(current + "# an older one\n")
    lockfile.setup(repo)
    assert hook.read_text() == current


def test_after_setup_a_stash_keeps_work_and_leaves_the_lock_out(repo):
    lockfile.setup(repo)
    (repo / "uv.lock").write_text(COMPLETED)
    (repo / "notes.txt").write_text("work in progress\n")
    git(repo, "add", "notes.txt")
    git(repo, "stash")
    (repo / "uv.lock").write_text(COMPLETED)
    git(repo, "stash", "pop")
    assert git(repo, "status", "--porcelain") == "A  notes.txt\n"


def test_setup_leaves_another_hook_alone(repo):
    hook = repo / ".git" / "hooks" / "post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\n")
    with pytest.raises(OSError, match="post-index-change exists and is not ours"):
        lockfile.setup(repo)
    assert hook.read_text() == "#!/bin/sh\n"


def test_forget_leaves_a_lock_in_conflict_alone(repo):
    upgrade(repo)
    git(repo, "checkout", "--quiet", "-b", "other", "HEAD~")
    (repo / "uv.lock").write_text(NEUTRAL.replace("sha256:aa", "sha256:a1"))
    git(repo, "commit", "--quiet", "-am", "Upgrade otherwise")
    with pytest.raises(subprocess.CalledProcessError):
        git(repo, "merge", "--quiet", "main")
    lockfile.forget(repo)
    assert git(repo, "status", "--porcelain") == "UU uv.lock\n"
