"""What a run may replace and remove in the folder it writes to, and what it must not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from itg_data.annotate.out_folder import RunError
from itg_data.annotate.run import run
from itg_data.errors import InputError
from itg_data.synthetic import SyntheticConfig, load_or_write_dataset


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folders_that_are_no_shards_of_ours_stay(make_config, make_pair):
    config = make_config([make_pair(0)])
    for name in ("shards-webdataset", "shards-01234567", "shards-89abcdef"):
        (config.out / name).mkdir(parents=True)
    (config.out / "shards-webdataset/train-000.tar").write_text("precious")
    (config.out / "shards-01234567/notes.txt").write_text("precious")
    # of a run with other pairs, killed while it wrote
    for name in ("000000.jsonl", "000000.dropped.jsonl", ".000000.jsonl.a_b1.part.jsonl"):
        (config.out / "shards-89abcdef" / name).touch()
    run(config)
    assert [name for name in names(config.out) if name.startswith("shards-")] == [
        "shards-01234567",
        "shards-webdataset",
    ]
    assert (config.out / "shards-webdataset/train-000.tar").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", "# My notes"),
        ("README.md", ""),
        ("config.json", '{"generator": "synthetic"}'),
        ("config.json", "[]"),
        ("config.json", "no JSON"),
        ("records.jsonl", ""),
        ("annotations.jsonl", ""),
        ("dropped.jsonl", ""),
        ("annotations.parquet", ""),
        ("video_itg_data.json", "[]"),
    ],
)
def test_a_folder_that_holds_anybody_elses_file_is_refused_and_left_as_it_was(
    make_config, make_pair, server, name, content
):
    config = make_config([make_pair(0)])
    config.out.mkdir()
    (config.out / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name} is .*: name another --out"):
        run(config)
    assert names(config.out) == [name]
    assert (config.out / name).read_text() == content
    assert not server.asked


def test_the_truth_of_a_scripted_set_is_not_replaced(make_config, make_pair, tmp_path):
    root = tmp_path / "scripted"
    load_or_write_dataset(root, SyntheticConfig(num_train=1, num_heldout=0, duration_s=12))
    before = (root / "records.jsonl").read_bytes()
    pair = make_pair(0, video="train-00000.mp4")
    with pytest.raises(InputError, match=r"config.json is not of an annotate run"):
        run(make_config([pair], videos=root / "videos", out=root))
    assert (root / "records.jsonl").read_bytes() == before
    assert names(root) == ["config.json", "records.jsonl", "videos"]


def test_a_readme_that_took_the_place_of_the_card_is_not_replaced(make_config, make_pair):
    config = make_config([make_pair(0)])
    run(config)
    run(config)  # our own card is no obstacle
    (config.out / "README.md").write_text("# My notes")
    with pytest.raises(InputError, match=r"README.md is not the card"):
        run(config)


def test_a_link_to_videos_that_no_run_made_is_not_replaced(make_config, make_pair, tmp_path):
    config = make_config([make_pair(0)])
    config.out.mkdir()
    (config.out / "videos").symlink_to(tmp_path)
    with pytest.raises(RunError, match="videos is in the way"):
        run(config)
    assert (config.out / "videos").resolve() == tmp_path


def test_what_a_killed_run_left_half_written_is_removed_by_the_next(make_config, make_pair, server):
    config = make_config([make_pair(n) for n in range(3)])
    kill_while_writing = (
        "import os, sys\n"
        "import itg_data.sets.derive as derive\n"
        "from itg_data.cli import main\n"
        "write = derive.write_jsonl\n"
        "def kill(path, records):\n"
        "    return write(path, (os.kill(os.getpid(), 9) for _ in records))\n"
        "derive.write_jsonl = kill\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    told = {"videos": config.videos, "qa": config.qa, "out": config.out}
    options = [f"--{name}={value}" for name, value in told.items()]
    options += [f"--base-url={server.base_url}", f"--model={config.sampler.model}"]
    command = [sys.executable, "-c", kill_while_writing, "annotate", *options]
    killed = subprocess.run(command, capture_output=True, check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sum(".part." in name for name in names(config.out)) == 3
    (config.out / ".mine.part.jsonl").touch()
    run(config)
    assert [name for name in names(config.out) if ".part." in name] == [".mine.part.jsonl"]
