import pytest
from itg_train.order import Order


def test_each_epoch_takes_every_group_once():
    order = Order(num_groups=7, groups_per_step=2, seed=3)
    places = [place for step in range(14) for place in order.places(step)]
    for epoch in range(4):
        assert sorted(places[7 * epoch : 7 * (epoch + 1)]) == list(range(7))
    assert places[:7] != places[7:14]


def test_another_seed_gives_another_order():
    orders = [Order(num_groups=50, groups_per_step=10, seed=seed).places(0) for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_an_order_over_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to train on"):
        Order(num_groups=0, groups_per_step=1)
