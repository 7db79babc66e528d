"""The pure parts of a request: fences, escapes in queries, fields, answers."""

from __future__ import annotations

import ast
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.api.artifacts import disposition, shown_type
from gateway.http.parse import run_request
from gateway.http.parse.body import fields_of, form_variables, parse_json_object
from gateway.http.parse.code_text import plain_code, strip_fence, unescape_query_code
from gateway.http.render.answer import strict_json
from sessions.errors import InvalidJSON, InvalidRequest
from sessions.model import RunRequest, TenantId
from sessions.settings import Limits


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
    if not code.lstrip().startswith(("```", "~~~")):
        assert strip_fence(code) == code


@given(st.text(alphabet=st.characters(exclude_characters="\r")), st.sampled_from(["", "python", "py3"]))
def test_fencing_and_stripping_gives_the_code_back(code: str, language: str) -> None:
    assert strip_fence(f"```{language}\n{code}\n```") == code


CODE = "for i in range(2):\n    print(i)"


@pytest.mark.parametrize(
    "given_code",
    [
        f"```python\n{CODE}\n```",
        f"```python\n{CODE}",
        f"```\n{CODE}\n",
        f"```python\n{CODE}```",
        f"~~~python\n{CODE}\n~~~",
        f"~~~\n{CODE}\n~~~",
        f"~~~python\n{CODE}",
        f"~~~~ {{.python}}\n{CODE}\n~~~~",
        f'```python title="a.py"\n{CODE}\n```',
        f"Here is the code:\n\n```python\n{CODE}\n```",
        f"Here's the code:\n```\n{CODE}\n```\nIt prints 0 and 1.",
        f"```python\n{CODE}\n```\n\nThis prints two numbers.",
        f"1. Run this:\n\n   ```py\n   {CODE.replace(chr(10), chr(10) + '   ')}\n   ```\n",
        f"Solution\n~~~python\n{CODE}\n~~~",
        f"First `pip`:\n```bash\npip install x\n```\nThen:\n```python\n{CODE}\n```",
        f"```bash\npip install x\n```\n```python\n{CODE}\n```",
        f"Sure! Here it is:\n```python\n{CODE}",
        f"\ufeff```python\n{CODE}\n```",
        f"```python\n\ufeff{CODE}\n```",
        f"\ufeff{CODE}",
        CODE.replace("\n", "\r\n"),
        CODE.replace("\n", "\r"),
        f"Here:\n```python\n{CODE}\n```\n".replace("\n", "\r\n"),
        CODE.replace("    ", "\u00a0\u00a0\u00a0\u00a0"),
        CODE.replace("    ", "\u3000\u3000\u202f "),
        CODE.replace("(i)", "\u200b(i)\u200b"),
        CODE.replace("print", "\ufeffprint"),
    ],
)
def test_the_code_is_found_in_what_models_put_around_it(given_code: str) -> None:
    assert plain_code(given_code, is_python=True).rstrip() == CODE


@pytest.mark.parametrize(
    "code",
    [
        'def f():\n    """Usage:\n\n    ```python\n    f()\n    ```\n    """\nprint(1)',
        "text = '''\n```python\nx\n```\n'''",
        'def f(:\n    """\n```python\nx\n```\n"""',
        "%%markdown\n```python\nx\n```",
        "%%writefile README.md\nHello\n```python\nx\n```",
        'import os\n%matplotlib inline\nfiles = !ls\ntext = """\n```\nx\n```\n"""\nos?',
        "~~~5",
        "~~~x\nprint(1)",
        "x = 1\n```\ny\n```",
        "```python\na\n```\nand\n```python\nb\n```\nboth",
        "Run:\n```bash\nls\n```",
        "```",
        "``````",
        "print('a\u00a0b\u200bc')  # \u3000",
        "%%bash\necho \u00a0x",
        "!echo a\u200bb",
        "print(\u200b",
        "",
    ],
)
def test_code_that_has_nothing_around_it_is_left_alone(code: str) -> None:
    assert plain_code(code, is_python=True) == code


def test_what_is_unseen_in_strings_stays_where_the_rest_is_mended() -> None:
    assert plain_code("x =\u00a0'a\u00a0b'\u200b # \u00a0", is_python=True) == "x = 'a\u00a0b' # \u00a0"


def test_a_fence_in_a_string_of_a_block_with_prose_around_it() -> None:
    code = 'print("""\n```\nx\n```\n""")'
    assert plain_code(f"Here it is:\n```python\n{code}\n```\nDone!", is_python=True) == code


@pytest.mark.parametrize(
    ("given_code", "expected"),
    [
        ("echo a\r\necho b", "echo a\necho b"),
        ("printf 'a\rb'", "printf 'a\rb'"),
        ("```bash\necho a\n```", "echo a"),
        ("```bash\necho a", "echo a"),
        ("cat <<E\n```\nx\n```\nE", "cat <<E\n```\nx\n```\nE"),
        ("echo \u00a0", "echo \u00a0"),
    ],
)
def test_code_of_other_languages(given_code: str, expected: str) -> None:
    assert plain_code(given_code, is_python=False) == expected


@given(st.text(alphabet="ab1=()'\"#`~\n \t\u00a0\u200b\r%!", max_size=40))
def test_a_program_that_is_right_keeps_its_meaning(code: str) -> None:
    try:
        before = ast.dump(ast.parse(code))
    except (SyntaxError, ValueError):
        return
    if not code.lstrip().startswith("~~~"):
        assert ast.dump(ast.parse(plain_code(code, is_python=True))) == before


@pytest.mark.parametrize(
    "hostile", ["`" * 100_000, "```\n" * 20_000, "x\n```\n" * 20_000, "~~~a\n" * 20_000, '"' * 100_000]
)
@pytest.mark.timeout(10)
def test_looking_for_code_takes_bounded_time(hostile: str) -> None:
    for is_python in (True, False):
        assert len(plain_code(hostile, is_python=is_python)) <= len(hostile)


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


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", ["[],", "{},", "[[]],", '{"a":1},', "0,", '"",'])
def test_a_body_that_is_costly_to_decode_is_refused_at_once(unit: str) -> None:
    body = b'{"code": "1", "variables": {"x": [' + (unit * (6_000_000 // len(unit))).encode() + b"0]}}"
    started_s = time.process_time()
    with pytest.raises(InvalidJSON, match="more than 250000 values"):
        parse_json_object(body)
    assert time.process_time() - started_s < 0.5


@pytest.mark.parametrize("value", [list(range(100_000)), ["[{,"] * 100_000, [[1, 2]] * 50_000, "[{," * 1_000_000])
def test_plain_large_data_is_taken(value: object) -> None:
    assert parse_json_object(json.dumps({"x": value}).encode()) == {"x": value}


@pytest.mark.parametrize(
    "text", ["{", "[1", '{"x": NaN}', '{"x": -Infinity}', "1", '"x"', "[" * 200 + "]" * 200, "9" * 5000, "[],"]
)
def test_every_mistake_in_the_variables_of_a_form_is_an_invalid_request(text: str) -> None:
    with pytest.raises(InvalidRequest, match='"variables"') as caught:
        form_variables(text)
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("text", ['{"x": NaN}', '{"x": Infinity}', "{", '{"x": ' + "9" * 5000 + "}"])
def test_every_mistake_in_a_body_is_invalid_json(text: str) -> None:
    with pytest.raises(InvalidJSON):
        parse_json_object(text.encode())


def request_of(**fields: object) -> RunRequest:
    given = fields_of(run_request.RunFields, {"code": "1", **fields})
    return run_request.run_request(
        given, tenant=TenantId("t"), languages={"python": "python3"}, limits=Limits(), from_query=False
    )


def test_variables_get_the_names_that_python_gives_them() -> None:
    assert request_of(variables={"\ufb01le": 1, "\u212b": 2}).variables == {"file": 1, "\u00c5": 2}


@pytest.mark.parametrize(
    "variables",
    [{"\ufb01": 1, "fi": 2}, {"\u1d62\ufb01": 1, "i\ufb01": 2}, {"\u1d62n": 1}, {"a" * 256: 1}, {"\ud800": 1}],
)
def test_names_that_python_would_read_as_something_else_are_refused(variables: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest, match='"variables"'):
        request_of(variables=variables)


def test_an_empty_language_is_none_in_json_as_in_a_form() -> None:
    assert request_of(languageType="").language == request_of(languageType="", language="python").language == "python"
    form = run_request.from_text({"code": "1", "languageType": ""})
    assert form.languageType is None
