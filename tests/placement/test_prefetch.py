from stoker.placement.prefetch import next_to_read

RATES = {"busy": 2.0, "quiet": 0.1, "never": 0.0, "new": 0.0}


def chosen(free_bytes: int, **missing_bytes: int) -> str | None:
    return next_to_read(missing_bytes.items(), free_bytes, RATES.__getitem__)


def test_what_is_called_most_is_read_first() -> None:
    assert chosen(100, quiet=10, busy=90, never=5) == "busy"


def test_nothing_goes_for_it() -> None:
    assert chosen(50, quiet=10, busy=90) == "quiet"
    assert chosen(5, quiet=10, busy=90) is None


def test_what_was_never_called_comes_last_in_a_fixed_order() -> None:
    assert chosen(100, new=1, never=1) == "never"
    assert chosen(100, never=1, quiet=1) == "quiet"
