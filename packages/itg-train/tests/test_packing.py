import random

import pytest
from itg_train.packing import Item, pack


def item(place, num_tokens):
    cost = num_tokens + num_tokens**2 / 1000
    return Item(place=place, questions=(0,), sides=(1,), num_tokens=num_tokens, cost=cost)


def draw(count, seed=0):
    rng = random.Random(seed)
    return [item(place, rng.randint(100, 4000)) for place in range(count)]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
def test_every_item_is_dealt_once_within_the_budget_in_as_many_passes_for_all(num_processes):
    items = draw(40)
    dealt = pack(items, num_processes, 6000)
    flat = [each for process in dealt for of_pass in process for each in of_pass]
    assert sorted(each.place for each in flat) == list(range(40))
    assert len({len(process) for process in dealt}) == 1
    assert all(sum(i.num_tokens for i in p) <= 6000 for process in dealt for p in process)


def test_processes_cost_alike_where_dealing_in_turn_would_not():
    items = draw(64)
    costs = [sum(i.cost for p in process for i in p) for process in pack(items, 4, 8000)]
    in_turn = [sum(i.cost for i in items[rank::4]) for rank in range(4)]
    assert max(costs) / min(costs) < 1.05 < max(in_turn) / min(in_turn)


def test_the_order_of_the_items_does_not_matter():
    items = draw(20)
    assert pack(items, 2, 5000) == pack(items[::-1], 2, 5000)


def test_an_item_beyond_the_budget_passes_alone():
    dealt = pack([item(0, 9000), item(1, 100), item(2, 100)], 1, 1000)
    assert [[i.place for i in p] for p in dealt[0]] == [[0], [1, 2]]


def test_more_processes_than_items_leave_some_passes_empty():
    dealt = pack([item(0, 10)], 3, 100)
    assert sorted(len(process[0]) for process in dealt) == [0, 0, 1]
