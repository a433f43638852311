import itertools

import numpy as np
import torch
from itg_model import select_frames


def test_q_frame_in_parity_is_its_definition_under_the_same_seed():
    for seed in range(20):
        scores = np.random.default_rng(seed).normal(size=128) * 5
        torch.manual_seed(seed)
        uniform = torch.rand(128)
        likely = torch.tensor(scores) / 0.8
        likely = likely - torch.logsumexp(likely, 0)
        keys = likely - (-(uniform + 1e-10).log() + 1e-10).log()
        wanted = keys.argsort(descending=True)[:8].sort().values.tolist()
        assert select_frames(scores, 8, "q-frame", parity=True, seed=seed).tolist() == wanted


def test_q_frame_leaves_the_random_state_of_others_alone():
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    select_frames([0.1, 0.2, 0.3], 2, "q-frame", parity=True, seed=5)
    assert torch.rand(3).tolist() == wanted.tolist()


def test_q_frame_draws_from_the_softmax_without_putting_back():
    scores, tau = np.array([0.0, 0.5, 1.0, 2.0]), 0.8
    weights = np.exp(scores / tau)
    weights /= weights.sum()
    wanted = {}
    for first, second in itertools.permutations(range(4), 2):
        pair = tuple(sorted((first, second)))
        chance = weights[first] * weights[second] / (1 - weights[first])
        wanted[pair] = wanted.get(pair, 0.0) + chance
    num_draws = 4000
    for parity in (False, True):
        seen = dict.fromkeys(wanted, 0)
        for seed in range(num_draws):
            chosen = select_frames(scores, 2, "q-frame", parity, tau=tau, seed=seed).tolist()
            seen[tuple(chosen)] += 1
        for pair, chance in wanted.items():
            # five standard deviations
            margin = 5 * np.sqrt(chance * (1 - chance) / num_draws)
            assert abs(seen[pair] / num_draws - chance) < margin


def test_q_frame_is_seeded_and_colder_is_surer():
    scores = np.random.default_rng(0).normal(size=100)
    draws = {tuple(select_frames(scores, 8, "q-frame", seed=seed)) for seed in range(10)}
    assert len(draws) == 10
    best = select_frames(scores, 8).tolist()
    assert select_frames(scores, 8, "q-frame", tau=1e-5).tolist() == best


def test_q_frame_of_the_authors_cannot_tell_unlikely_frames_apart():
    # exp(-200 / .8) is 0 in float32; by default the order of the scores still counts
    scores = np.array([0.0, -300.0, -900.0, -200.0, -800.0], dtype=np.float32)
    assert select_frames(scores, 3, "q-frame").tolist() == [0, 1, 3]
    assert select_frames(scores, 3, "q-frame", parity=True).tolist() == [0, 1, 2]
