"""The pure parts of a request: fences, escapes in queries, fields, answers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.handlers.answer import clean_text, strict_json
from gateway.handlers.artifacts import disposition, shown_type
from gateway.handlers.code_text import strip_fence, unescape_query_code
from gateway.handlers.fields import parse_json_object
from sessions.errors import InvalidJSON


@pytest.mark.parametrize(
    ("given_code", "expected"),
    [
        ("```python\nprint(1)\n```", "print(1)"),
        ("```\nprint(1)\n```", "print(1)"),
        ("\n\n```py\nprint(1)\n\n```\n\n", "print(1)\n"),
        ("```python\r\nprint(1)\r\n```\r\n", "print(1)"),
        ("```python\n```", ""),
        ("  ```python\n  if x:\n    y\n  ```", "if x:\n  y"),
        ("````\n```\n````", "```"),
        ('```python\nprint("""\n```\n""")\n```', 'print("""\n```\n""")'),
        ("print('```')", "print('```')"),
        ("x = 1\n```\ny\n```", "x = 1\n```\ny\n```"),
        ("```python\nprint(1)", "```python\nprint(1)"),
        ("```", "```"),
        ("``````", "``````"),
        ("```a`b\nx\n```", "```a`b\nx\n```"),
        ("", ""),
    ],
)
def test_only_a_fence_around_everything_is_stripped(given_code: str, expected: str) -> None:
    assert strip_fence(given_code) == expected


@given(st.text())
def test_code_without_a_fence_is_never_touched(code: str) -> None:
    if not code.lstrip().startswith("```"):
        assert strip_fence(code) == code


@given(st.text(alphabet=st.characters(exclude_characters="\r")), st.sampled_from(["", "python", "py3"]))
def test_fencing_and_stripping_gives_the_code_back(code: str, language: str) -> None:
    assert strip_fence(f"```{language}\n{code}\n```") == code


@pytest.mark.parametrize("hostile", [" " * 1_000_000, "```" + " " * 1_000_000, "```\n" + " \n" * 500_000])
@pytest.mark.timeout(5)
def test_stripping_takes_linear_time(hostile: str) -> None:
    assert strip_fence(hostile) == hostile


@pytest.mark.parametrize(
    ("given_code", "expected"),
    [
        (r"for i in range(3):\n\tprint(i)", "for i in range(3):\n\tprint(i)"),
        (r"print(\"hi\")", 'print("hi")'),
        (r"import asyncio\nawait asyncio.sleep(0)", "import asyncio\nawait asyncio.sleep(0)"),
        (r"x = 1\nprint('a\\nb')", "x = 1\nprint('a\\\\nb')"),
    ],
)
def test_text_that_an_escape_too_many_keeps_from_compiling_is_unescaped(given_code: str, expected: str) -> None:
    assert unescape_query_code(given_code) == expected


@pytest.mark.parametrize(
    "code",
    [
        r"print('a\nb')",
        r"await f('a\tb')",
        r"!printf 'a\nb'",
        r"%timeit '\n'.join(x)",
        "%%bash\nprintf 'a\\n'",
        r"files = !ls \"a b\"",
        r"str.join?  # \n",
        'import os\n!echo "\\t"',
        r"print('a\nb')\nprint(",
        "x = 1",
        "",
        "\\n\x00",
        "\\n\ud800",
        r"\n" + "(" * 5000,
        r"\n" + "-" * 16_000,
        r"\nimport " + "a." * 40_000,
    ],
)
@pytest.mark.timeout(5)
def test_code_that_is_right_as_it_came_or_wrong_either_way_is_left_alone(code: str) -> None:
    assert unescape_query_code(code) == code


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(alphabet=st.characters(codec=None, categories=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def _refuse(constant: str) -> None:
    raise AssertionError(constant)


@given(json_values)
def test_every_value_becomes_json_that_any_parser_takes(value: object) -> None:
    json.loads(strict_json(value).decode("utf-8", "strict"), parse_constant=_refuse)


@given(st.text())
def test_text_that_utf8_can_say_is_kept(text: str) -> None:
    assert clean_text(text) == text
    assert json.loads(strict_json(text)) == text


@given(st.binary())
def test_bytes_are_an_object_or_invalid_json(body: bytes) -> None:
    try:
        assert isinstance(parse_json_object(body), dict)
    except InvalidJSON as error:
        assert str(error).endswith(".")  # noqa: PT017 - the other outcome is allowed too


def test_a_byte_order_mark_is_no_error() -> None:
    assert parse_json_object(b'\xef\xbb\xbf{"code": "1"}') == {"code": "1"}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n...", "image/png"),
        (b"\xff\xd8\xff\xe0...", "image/jpeg"),
        (b"GIF89a...", "image/gif"),
        (b"RIFF\n\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
        (b"<html>", None),
        (b"RIFF....WAVE", None),
        (b"", None),
    ],
)
def test_only_four_picture_formats_are_shown(data: bytes, expected: str | None) -> None:
    assert shown_type(data) == expected


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_file_name_cannot_leave_its_header(name: str) -> None:
    header = disposition(name, inline=False)
    assert header.isascii()
    assert header.isprintable()
    assert header.count('"') == 2
