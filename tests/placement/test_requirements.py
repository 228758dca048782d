from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.placement.errors import BadSpec
from stoker.placement.requirements import REQUIREMENTS_BYTES_MAXIMUM, read_requirements


def lines(text: str) -> tuple[str, ...]:
    return read_requirements(text.encode()).lines


def test_order_comments_spelling_and_continued_lines_do_not_matter() -> None:
    written = "# mine\nPillow >= 10 , <12\n\nFlask_Cors==4.0  # web\n"
    same = "\ufeffflask-cors==4.0\r\npillow<12,\\\n  >=10\nflask-cors==4.0"
    assert lines(written) == lines(same) == ("flask-cors==4.0", "pillow<12,>=10")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n  # at all", "\\\n"])
def test_a_file_without_packages_asks_for_nothing(text: str) -> None:
    assert read_requirements(text.encode()).packages == ()
    assert lines(text) == ()


def test_extras_markers_archives_and_hashes_are_kept() -> None:
    text = (
        'a[x,y]>=1; python_version < "3.20"\n'
        "b @ https://host/b-1.0.whl\n"
        "c @ git+https://host/c@v1#subdirectory=d\n"
        f"d==1 \\\n  --hash=sha256:{'ab' * 32} \\\n  --hash sha512:{'cd' * 64}\n"
    )
    assert lines(text) == (
        'a[x,y]>=1; python_version < "3.20"',
        "b @ https://host/b-1.0.whl",
        "c @ git+https://host/c@v1#subdirectory=d",
        f"d==1 --hash=sha256:{'ab' * 32} --hash=sha512:{'cd' * 64}",
    )


def test_options_of_indexes_and_formats_come_first() -> None:
    text = "a\n-i https://host/simple\n--extra-index-url=https://other/simple\n--pre\n"
    text += "-f https://host/wheels\n--only-binary :all:\n--no-binary=a\n"
    assert lines(text) == (
        "--index-url https://host/simple",
        "--extra-index-url https://other/simple",
        "--pre",
        "--find-links https://host/wheels",
        "--only-binary :all:",
        "--no-binary a",
        "a",
    )


@pytest.mark.parametrize(
    "line",
    [
        "-r other.txt",
        "--requirement=other.txt",
        "-c constraints.txt",
        "-e .",
        "./local",
        "a @ file:///etc/passwd",
        "a @ ssh://host/a",
        "a @ git+ssh://host/a",
        "--find-links /tmp/wheels",
        "--index-url file:///tmp",
        "-i https:///simple",
        "--target /tmp",
        "--trusted-host host",
        "--pre yes",
        "--only-binary",
        "--config-settings=x=y",
        "a --hash=md5:abcd",
        "a --global-option=x",
        "a==",
        "https://host/a.whl",
        "-i https://host/${PIP_INDEX_URL}",
    ],
)
def test_what_refers_elsewhere_or_is_unknown_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(BadSpec, match=r"in line 2 of requirements\.txt"):
        lines(f"fine\n{line}\n")


@pytest.mark.parametrize("line", ["https://me:secret@host/a.whl", "-i ftp://me:secret@host"])
def test_a_refused_line_shows_no_password(line: str) -> None:
    with pytest.raises(BadSpec) as caught:
        lines(line)
    assert "secret" not in str(caught.value)
    assert "//****@host" in str(caught.value)


def test_too_long_and_other_encodings_are_refused() -> None:
    with pytest.raises(BadSpec, match="at most 262144 bytes"):
        read_requirements(b"a" * (REQUIREMENTS_BYTES_MAXIMUM + 1))
    with pytest.raises(BadSpec, match="UTF-8"):
        read_requirements("a".encode("utf-16"))


@given(st.text(max_size=200))
def test_any_text_is_read_the_same_again_or_refused(text: str) -> None:
    try:
        first = lines(text)
    except (BadSpec, UnicodeEncodeError):
        return
    assert lines("\n".join(first)) == first
