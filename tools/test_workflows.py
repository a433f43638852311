import re
import shutil
import subprocess

import pytest
import workspace

GITHUB = workspace.ROOT / ".github"
CHECKERS = {"actionlint": ["actionlint"], "zizmor": ["zizmor", "--offline", "--quiet", ".github"]}


@pytest.fixture
def repository(tmp_path):
    shutil.copytree(GITHUB, tmp_path / ".github")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def complaints(checker, repository):
    done = subprocess.run(
        CHECKERS[checker], cwd=repository, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.parametrize("checker", CHECKERS)
def test_the_workflows_pass(checker, repository):
    assert complaints(checker, repository) == ""


@pytest.mark.parametrize(
    ("checker", "old", "new", "complaint"),
    [
        ("actionlint", "matrix.part }}", "matrix.parts }}", 'property "parts" is not defined'),
        ("actionlint", "needs: plan", "needs: plans", 'job "plans" which does not exist'),
        ("zizmor", r"checkout@\w+", "checkout@v4", "unpinned-uses"),
        ("zizmor", r'"\$PART"', "${{ github.head_ref }}", "template-injection"),
        (
            "zizmor",
            r"permissions:\n      contents: read",
            "permissions: write-all",
            "excessive-permissions",
        ),
    ],
)
def test_a_fault_put_in_is_found(checker, old, new, complaint, repository):
    file = repository / ".github" / "workflows" / "ci.yml"
    changed, num_changes = re.subn(old, new, file.read_text())
    assert num_changes
    file.write_text(changed)
    assert complaint in complaints(checker, repository)


def test_each_part_of_ci_run_is_a_job_of_ci():
    known = re.search(r"\|\| parts=\((.*?)\)", (workspace.ROOT / ".ci" / "run").read_text())
    workflow = (GITHUB / "workflows" / "ci.yml").read_text()
    matrix = re.search(r"part: \[(.*?)\]", workflow)
    assert known
    assert matrix
    jobs = {*matrix[1].split(", "), *re.findall(r"run: \.ci/run (\w+)$", workflow, re.MULTILINE)}
    assert jobs == set(known[1].split())


def test_nothing_is_published_before_its_tests_and_its_wheel_were_tried():
    workflow = (GITHUB / "workflows" / "release.yml").read_text()
    jobs = dict(re.findall(r"^  (\w+):\n((?:    .*\n|\n)+)", workflow, re.MULTILINE))
    assert "needs: [build, tests, smoke]" in jobs["publish"]
    assert "needs: build" in jobs["tests"]
    assert 'pytest -n auto "packages/$PACKAGE"' in jobs["tests"]
    # the tag is looked for on main, of which a shallow clone knows nothing
    assert "fetch-depth: 0" in jobs["build"]
    assert '--tag "$GITHUB_REF_NAME"' in jobs["build"]
