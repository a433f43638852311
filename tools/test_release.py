import subprocess
import sys

import pytest
import release
import workspace


@pytest.fixture
def members(tmp_path):
    model = make_member(tmp_path, "model", data=">=0.1,<0.2")
    return {"data": make_member(tmp_path, "data"), "model": model}


def make_member(
    folder, name, version="0.1.0", changelog="## 0.1.0 (2026-01-02)\n\n- A.\n", **needs
):
    directory = folder / name
    (directory / "changes").mkdir(parents=True)
    (directory / "CHANGELOG.md").write_text(changelog)
    return workspace.Member(name=name, version=version, directory=directory, siblings=needs)


def test_a_plan_says_what_would_be_released(members):
    line = release.plan(members["model"], members, tag="model-v0.1.0", dry_run=False)
    assert line == "model-v0.1.0, with data>=0.1,<0.2"


@pytest.mark.parametrize("tag", ["model-v0.1.1", "data-v0.1.0", "v0.1.0"])
def test_a_tag_that_is_not_package_and_version_is_refused(members, tag):
    with pytest.raises(release.ReleaseError, match=rf"tag must be model-v0\.1\.0 .*, got {tag}"):
        release.plan(members["model"], members, tag=tag, dry_run=True)


def test_a_sibling_out_of_range_is_named(members, tmp_path):
    members["data"] = make_member(tmp_path / "other", "data", version="0.2.0")
    with pytest.raises(release.ReleaseError, match=r"needs data>=0\.1,<0\.2, .* has 0\.2\.0"):
        release.plan(members["model"], members, tag=None, dry_run=True)


def test_without_a_changelog_section_fragments_suffice_for_a_dry_run_only(members):
    member = members["data"]
    (member.directory / "CHANGELOG.md").write_text("## 0.1.01\n\n- Another version's.\n")
    with pytest.raises(release.ReleaseError, match=r"no section for 0\.1\.0"):
        release.plan(member, members, tag=None, dry_run=True)
    (member.directory / "changes" / "7.fix.md").write_text("Mended.\n")
    assert release.plan(member, members, tag=None, dry_run=True) == "data-v0.1.0, with no sibling"
    with pytest.raises(release.ReleaseError, match="no section for") as refused:
        release.plan(member, members, tag=None, dry_run=False)
    assert "not in the changelog yet (towncrier build): 7.fix.md" in str(refused.value)


def test_notes_are_the_section_of_this_version_alone(tmp_path):
    changelog = "# Changelog\n\n## 0.2.0 (2026-02-03)\n\n- B.\n\n## 0.1.0 (2026-01-02)\n\n- A.\n"
    member = make_member(tmp_path, "data", version="0.2.0", changelog=changelog)
    assert release.notes(member) == "- B."


@pytest.fixture
def clone(tmp_path):
    """A clone whose branch is one commit ahead of `origin/main`."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main", "origin")
    git(tmp_path / "origin", "commit", "--quiet", "--allow-empty", "-m", "On main")
    git(tmp_path, "clone", "--quiet", "origin", "clone")
    git(tmp_path / "clone", "commit", "--quiet", "--allow-empty", "-m", "Beside main")
    return tmp_path / "clone"


def git(folder, *arguments):
    author = ["-c", "user.name=Tester", "-c", "user.email=tester@mirror.example"]
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True)


def test_what_is_tagged_beside_main_is_refused(clone):
    with pytest.raises(release.ReleaseError, match=r"HEAD is not on origin/main: merge it first"):
        release.check_on_main(clone)
    git(clone, "checkout", "--quiet", "--detach", "HEAD~")
    release.check_on_main(clone)


def test_a_clone_that_does_not_know_main_says_so(clone):
    git(clone, "remote", "remove", "origin")
    with pytest.raises(release.ReleaseError, match=r"origin/main.*; git fetch origin main$"):
        release.check_on_main(clone)


def test_a_tag_is_looked_for_on_main_and_a_rehearsal_is_not(tmp_path, monkeypatch, capsys):
    def refuse(root):
        raise release.ReleaseError(f"{root.name} is not on main")

    monkeypatch.setattr(release, "check_on_main", refuse)
    monkeypatch.setattr(release, "build", lambda *_: None)
    monkeypatch.setattr(release, "plan", lambda *_, **__: "as planned")
    arguments = ["itg-data", "--stage", "build", "--out-dir", str(tmp_path), "--tag", "itg-data-v1"]
    assert release.main(arguments) == 1
    assert "is not on main" in capsys.readouterr().out
    assert release.main([*arguments, "--dry-run"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("package", workspace.members())
def test_each_package_s_release_passes_its_rehearsal(package, tmp_path, capsys):
    assert release.main([package, "--dry-run", "--out-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"plan   {package}-v" in said
    assert "smoke  " in said
    built = {path.suffix for path in tmp_path.iterdir() if path.name.startswith("itg_")}
    assert built == {".whl", ".gz"}


def test_the_stages_can_be_run_apart(tmp_path, capsys):
    arguments = ["itg-data", "--dry-run", "--out-dir", str(tmp_path), "--stage"]
    assert release.main([*arguments, "smoke"]) == 1
    assert "run --stage build first" in capsys.readouterr().out
    assert release.main([*arguments, "build"]) == 0
    assert "smoke" not in capsys.readouterr().out
    assert release.main([*arguments, "smoke"]) == 0
    assert capsys.readouterr().out.startswith("smoke  ")


def test_a_rehearsal_can_be_repeated_where_it_was_done(tmp_path):
    for _ in range(2):
        assert release.main(["itg-data", "--dry-run", "--out-dir", str(tmp_path)]) == 0
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("itg_")]) == 2


@pytest.mark.parametrize("member", workspace.members().values(), ids=lambda m: m.name)
def test_every_waiting_sentence_reaches_the_changelog(member):
    towncrier = [sys.executable, "-m", "towncrier"]
    draft = [*towncrier, "build", "--draft", "--version", "9.9.9", "--dir", str(member.directory)]
    done = subprocess.run(draft, capture_output=True, text=True, check=True)
    told = " ".join(done.stdout.split())
    assert "## 9.9.9" in told
    for path in release.fragments(member):
        assert " ".join(path.read_text().split()) in told, path


def test_an_unknown_package_is_refused(capsys):
    with pytest.raises(SystemExit):
        release.main(["itg-modle", "--dry-run"])
    assert "itg-modle" in capsys.readouterr().err
