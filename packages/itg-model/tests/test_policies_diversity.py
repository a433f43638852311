import math

import numpy as np
import pytest
from itg_model import select_frames

RNG = np.random.default_rng(0)


def kernel(x, y):
    squared = sum((a - b) ** 2 for a, b in zip(x, y, strict=True))
    return sum(math.exp(-squared / (2 * 2**j)) for j in range(-3, 2))


def mdp3_by_definition(embeddings, query, k, segment=-1, lambda_=0.2):
    num_frames = len(embeddings)
    if num_frames <= k:
        return list(range(num_frames))
    like = [kernel(query, x) for x in embeddings]
    alike = np.array([[kernel(x, y) for y in embeddings] for x in embeddings])

    def worth(frames):
        determinant = np.linalg.slogdet(alike[np.ix_(frames, frames)])[1]
        return 2 / lambda_ * sum(math.log(like[i]) for i in frames) + determinant

    size = num_frames if segment < 0 else segment
    states = {0: (0.0, [])}
    for first in range(0, num_frames, size):
        reached: dict[int, tuple[float, list[int]]] = {}
        for n, (value, frames) in sorted(states.items()):
            given, grown = frames[-1:], []
            part = range(first, min(first + size, num_frames))
            for t in range(min(k - n, len(part)) + 1):
                total = value + (worth(given + grown) if grown else 0.0)
                if n + t not in reached or total > reached[n + t][0]:
                    reached[n + t] = (total, frames + sorted(grown))
                rest = [i for i in part if i not in grown]
                if rest:
                    grown.append(max(rest, key=lambda i: worth([*given, *grown, i])))
        states = reached
    return states[k][1]


def scene(num_frames, width=6, walk=False):
    embeddings = RNG.normal(size=(num_frames, width))
    if walk:
        embeddings = np.cumsum(embeddings, axis=0)
    query = RNG.normal(size=width)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), query / np.linalg.norm(
        query
    )


@pytest.mark.parametrize("walk", [False, True])
@pytest.mark.parametrize("segment", [-1, 4, 8])
@pytest.mark.parametrize("k", [1, 3, 7, 30])
def test_mdp3_is_its_definition_in_parity_and_by_default(walk, segment, k):
    embeddings, query = scene(24, walk=walk)
    wanted = mdp3_by_definition(embeddings, query, k, segment)
    params = {"embeddings": embeddings, "query_embedding": query, "segment": segment}
    for parity in (False, True):
        assert select_frames(np.zeros(24), k, "mdp3", parity, **params).tolist() == wanted


@pytest.mark.parametrize("lambda_", [0.05, 1.0, 50.0])
def test_mdp3_weighs_the_question_against_variety(lambda_):
    embeddings, query = scene(20)
    params = {"embeddings": embeddings, "query_embedding": query, "lambda_": lambda_}
    wanted = mdp3_by_definition(embeddings, query, 5, lambda_=lambda_)
    assert select_frames(np.zeros(20), 5, "mdp3", **params).tolist() == wanted
    assert select_frames(np.zeros(20), 5, "mdp3", parity=True, **params).tolist() == wanted


def test_mdp3_by_default_takes_a_shorter_last_segment_where_the_authors_fail():
    embeddings, query = scene(22)
    params = {"embeddings": embeddings, "query_embedding": query, "segment": 8}
    wanted = mdp3_by_definition(embeddings, query, 5, 8)
    assert select_frames(np.zeros(22), 5, "mdp3", **params).tolist() == wanted
    with pytest.raises(ValueError, match="policy mdp3: segment must divide the 22 frames"):
        select_frames(np.zeros(22), 5, "mdp3", parity=True, **params)


def test_mdp3_takes_one_of_two_equal_frames_as_long_as_there_are_others():
    query = np.array([1.0, 0.0, 0.0])
    angles = np.array([0.1, 0.1, 0.6, 1.1, 1.1, 1.1])
    embeddings = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    params = {"embeddings": embeddings, "query_embedding": query}
    assert select_frames(np.zeros(6), 2, "mdp3", **params).tolist() == [0, 2]
    # a frame that adds nothing is a last resort, but k frames it gives
    assert select_frames(np.zeros(6), 3, "mdp3", **params).tolist() == [0, 2, 3]
    assert len(select_frames(np.zeros(6), 5, "mdp3", **params)) == 5


def test_mdp3_keeps_the_way_found_first_of_two_worth_the_same():
    embeddings = np.tile([0.6, 0.8], (8, 1))
    params = {"embeddings": embeddings, "query_embedding": embeddings[0], "segment": 4}
    for parity in (False, True):
        assert select_frames(np.zeros(8), 1, "mdp3", parity, **params).tolist() == [4]


def test_mdp3_of_the_authors_loses_states_among_equal_frames():
    embeddings = np.tile(np.float32([1.0, 0.0]), (8, 1))
    params = {"embeddings": embeddings, "query_embedding": embeddings[0]}
    assert len(select_frames(np.zeros(8), 3, "mdp3", parity=True, **params)) == 0
    assert select_frames(np.zeros(8), 3, "mdp3", **params).tolist() == [0, 1, 2]


def test_mdp3_by_default_makes_unit_vectors_of_any_embeddings():
    embeddings, query = scene(20)
    wanted = mdp3_by_definition(embeddings, query, 5)
    sizes = 10.0 ** RNG.integers(-150, 150, (20, 1))
    params = {"embeddings": embeddings * sizes, "query_embedding": query * 1e200}
    assert select_frames(np.zeros(20), 5, "mdp3", **params).tolist() == wanted
    params["embeddings"][3] = 0.0
    assert len(select_frames(np.zeros(20), 5, "mdp3", **params)) == 5
