"""The order of examples and all seeds are pure functions of the seed and the position."""

from collections import Counter

from b4m.training.randomness import ShuffledIndices, derive_seed


def test_each_example_comes_once_before_any_comes_twice() -> None:
    for examples, batch_size in ((5, 1), (5, 2), (4, 3), (1, 4), (3, 8)):
        order = ShuffledIndices(examples, batch_size, seed=0)
        stream = [index for position in range(60) for index in order.batch(position)]
        for start in range(0, len(stream) - examples, examples):
            assert sorted(stream[start : start + examples]) == list(range(examples))


def test_a_batch_does_not_depend_on_those_before() -> None:
    order = ShuffledIndices(7, 3, seed=1)
    forward = [order.batch(position) for position in range(20)]
    backward = [ShuffledIndices(7, 3, seed=1).batch(position) for position in reversed(range(20))]
    assert forward == backward[::-1]


def test_seed_and_name_change_the_order() -> None:
    streams = [
        [order.batch(position)[0] for position in range(40)]
        for order in (
            ShuffledIndices(9, 1, 0),
            ShuffledIndices(9, 1, 1),
            ShuffledIndices(9, 1, 0, "partners"),
        )
    ]
    assert streams[0] != streams[1] != streams[2] != streams[0]


def test_every_place_of_a_permutation_is_used_by_every_example() -> None:
    seen = Counter(
        (place, index)
        for seed in range(200)
        for place, index in enumerate(ShuffledIndices(3, 3, seed).batch(0))
    )
    assert set(seen) == {(place, index) for place in range(3) for index in range(3)}
    assert min(seen.values()) > 40  # 66.7 expected


def test_derived_seeds_tell_their_parts_apart() -> None:
    seeds = {
        derive_seed(*parts) for parts in ((0, 1), (1, 0), (0, "1", 2), (0, "12"), (1,), ("0", 1))
    }
    assert len(seeds) == 5, "0 and '0' name the same part"
    assert all(0 <= seed < 2**63 for seed in seeds)
