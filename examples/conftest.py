from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return tiny.write_videos(tmp_path_factory.mktemp("videos") / "set")


@pytest.fixture(scope="session")
def video(videos: list[Path]) -> Path:
    return videos[0]


@pytest.fixture(scope="session")
def grounder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_grounder(tmp_path_factory.mktemp("grounder"))


@pytest.fixture(scope="session")
def vlm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_video_llm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_clip(tmp_path_factory.mktemp("clip"))
