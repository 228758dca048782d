"""Server-Timing headers and SSE bodies, as text."""

from stoker.gateway.cli.server_timing import delta_text, parse_server_timing, sse_data, waterfall


def test_a_header_becomes_milliseconds_by_stage() -> None:
    header = 'queue;dur=0, place;dur=1.5, fetch;desc="from s3";dur=120.25, odd, load;dur=x'

    assert parse_server_timing(header) == {"queue": 0.0, "place": 1.5, "fetch": 120.25}


def test_each_bar_begins_where_the_one_before_it_ended() -> None:
    rows = waterfall({"queue": 0.0, "load": 50.0, "prefill": 50.0})

    assert rows == [
        ("queue", "0.0", ""),
        ("load", "50.0", "█" * 15),
        ("prefill", "50.0", " " * 15 + "█" * 15),
        ("total", "100.0", ""),
    ]


def test_sse_data_skips_comments_and_joins_lines() -> None:
    lines = [b": loading 43 %", b"", b"data: a\n", b"data: b\r", b"\r\n", b"event: x", b"data: c"]

    assert list(sse_data(lines)) == ["a\nb", "c"]


def test_a_delta_is_read_from_chat_and_completion_events() -> None:
    assert delta_text({"choices": [{"delta": {"content": "hi"}}]}) == "hi"
    assert delta_text({"choices": [{"text": "ho"}]}) == "ho"
    assert delta_text({"choices": []}) == ""
