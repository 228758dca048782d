import pytest

from stoker.placement.ladder import Ladder, Layer, Rung, unshared, whole

LADDER = Ladder(
    "f",
    (
        Layer(Rung.IMPORTED, "environment", 200, 3.0),
        Layer(Rung.SKELETON, "f/skeleton", 60, 0.5),
        Layer(Rung.HOST, "model", 1000, 2.0),
        Layer(Rung.DEVICE, "f/device", 0, 0.25),
        Layer(Rung.SERVING, "f/serving", 100, 0.125),
    ),
)
ALL = tuple(layer.key for layer in LADDER.layers)


@pytest.mark.parametrize(
    ("held", "rung", "seconds"),
    [
        ((), Rung.ABSENT, 3.875),
        (("environment",), Rung.IMPORTED, 2.375),
        (("environment", "f/skeleton"), Rung.SKELETON, 2.375),
        (("environment", "model"), Rung.HOST, 0.875),
        (("environment", "f/skeleton", "model"), Rung.HOST, 0.375),
        (("model",), Rung.ABSENT, 3.875),
        (ALL[:4], Rung.DEVICE, 0.125),
        (ALL, Rung.SERVING, 0.0),
    ],
)
def test_a_start_climbs_what_is_missing_process_and_weights_side_by_side(
    held: tuple[str, ...], rung: Rung, seconds: float
) -> None:
    assert LADDER.rung(held) is rung
    assert LADDER.start_seconds(held) == seconds


def test_a_container_costs_the_whole_ladder_at_once() -> None:
    container = whole(LADDER)

    assert [layer.rung for layer in container.layers] == [Rung.SERVING]
    assert container.byte_count == LADDER.byte_count
    assert container.start_seconds() == LADDER.start_seconds()
    assert container.rung(()) is Rung.ABSENT


def test_an_unshared_ladder_has_keys_of_its_own() -> None:
    other = Ladder("g", LADDER.layers)

    keys = {layer.key for ladder in (LADDER, other) for layer in unshared(ladder).layers}

    assert len(keys) == 2 * len(LADDER.layers)


@pytest.mark.parametrize(
    ("upper", "lower", "expected"),
    [
        (Rung.SKELETON, Rung.IMPORTED, True),
        (Rung.HOST, Rung.SKELETON, False),
        (Rung.HOST, Rung.IMPORTED, False),
        (Rung.DEVICE, Rung.HOST, True),
        (Rung.DEVICE, Rung.SKELETON, True),
        (Rung.SERVING, Rung.IMPORTED, True),
        (Rung.IMPORTED, Rung.SERVING, False),
    ],
)
def test_weights_in_host_memory_need_no_process(upper: Rung, lower: Rung, expected: bool) -> None:
    layers = {layer.rung: layer for layer in LADDER.layers}

    assert layers[upper].rests_on(layers[lower]) is expected


def test_a_ladder_must_ascend_to_serving() -> None:
    with pytest.raises(AssertionError, match="serving"):
        Ladder("f", LADDER.layers[:2])
    with pytest.raises(AssertionError, match="ascend"):
        Ladder("f", LADDER.layers[::-1])
