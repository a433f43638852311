import time

import pytest
from itg_data.annotate.openai_client import ServerConfig
from itg_data.annotate.requests import AnnotatorError
from itg_data.annotate.run import run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
# Ray leaves a pipe and a process to the collector
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_ray_cluster_makes_the_same_set_and_stops_with_the_same_error(
    make_config, make_pair, server, tmp_path
):
    pairs = [make_pair(n, video=("long.mp4", "short.mp4")[n % 2]) for n in range(4)]
    here = make_config(pairs, out=tmp_path / "here")
    run(here)
    num_asked = len(server.asked)
    cluster = make_config(pairs, engine="ray")
    state = run(cluster)
    assert len(server.asked) == 2 * num_asked
    assert state.tally.num_asked == num_asked
    for name in ("annotations.jsonl", "dropped.jsonl"):
        assert (cluster.out / name).read_bytes() == (here.out / name).read_bytes()

    server.reply = lambda asked: server.Reply("bad key", 401)
    dead = ServerConfig(base_url=server.base_url, max_retries=0)
    with pytest.raises(AnnotatorError, match=r"answers 401: .*bad key"):
        run(make_config(pairs, engine="ray", out=tmp_path / "dead", annotator=dead))

    server.answered.clear()

    def die(asked):
        if asked.number >= 7:
            return server.Reply("out of memory", 500)
        # most are answered only after another worker has failed
        time.sleep(0.3)
        return server.sensible(asked)

    server.reply = die
    dying = make_config(pairs, engine="ray", out=tmp_path / "dying", annotator=dead)
    with pytest.raises(AnnotatorError, match=r"answers 500: .*out of memory"):
        run(dying)
    server.reply = server.sensible
    run(dying)
    assert set(server.answered.values()) == {1}
