"""What is known of each language's kernels: names and values of variables, and the code that sets them."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.languages import BASH_KERNEL, DENO_KERNEL, PYTHON_KERNEL, Variables, shell_quoted, traits_of


def variables(kernel_name: str) -> Variables:
    found = traits_of(kernel_name).variables
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("kernel_name", "given_name", "expected"),
    [
        (PYTHON_KERNEL, "x", "x"),
        (PYTHON_KERNEL, "ﬁ", "fi"),
        (PYTHON_KERNEL, "class", None),
        (PYTHON_KERNEL, "a-b", None),
        (BASH_KERNEL, "class", "class"),
        (BASH_KERNEL, "_A1", "_A1"),
        (BASH_KERNEL, "ﬁ", None),
        (BASH_KERNEL, "größe", None),
        (BASH_KERNEL, "a\n", None),
        (BASH_KERNEL, "1a", None),
        (BASH_KERNEL, "", None),
        (BASH_KERNEL, "a[0]", None),
        *((BASH_KERNEL, name, None) for name in ("UID", "PWD", "GROUPS", "RANDOM", "BASHPID")),
        (DENO_KERNEL, "$_a1", "$_a1"),
        (DENO_KERNEL, "größe", "größe"),
        (DENO_KERNEL, "print", "print"),
        (DENO_KERNEL, "class", None),
        (DENO_KERNEL, "undefined", None),
        (DENO_KERNEL, "__proto__", None),
        (DENO_KERNEL, "a-b", None),
        (DENO_KERNEL, "a;b", None),
        (DENO_KERNEL, "1a", None),
        (DENO_KERNEL, "", None),
        (DENO_KERNEL, "a\n", None),
    ],
)
def test_names_are_the_languages_own(kernel_name: str, given_name: str, expected: str | None) -> None:
    assert variables(kernel_name).name(given_name) == expected


def test_python_has_the_values_and_bash_has_texts() -> None:
    given_values: dict[str, Any] = {"s": " it's ", "n": 3, "d": {"a": [1, None, "ü"]}, "t": True, "none": None}
    assert variables(PYTHON_KERNEL).request(given_values)[1] == given_values
    code, texts = variables(BASH_KERNEL).request(given_values)
    assert code == ""
    assert texts == {"s": " it's ", "n": "3", "d": '{"a": [1, null, "ü"]}', "t": "true", "none": "null"}


def test_javascript_has_them_as_json_in_a_string_which_is_no_code() -> None:
    given_values = {"s": "`${1}`\u2028\ud800\"'", "d": {"__proto__": 1}}
    code, values = variables(DENO_KERNEL).request(given_values)
    assert values == {}
    assert code.isascii()
    literal = code.removeprefix('globalThis[Symbol.for("cellblock")].setVariables(').removesuffix(")")
    assert json.loads(json.loads(literal)) == given_values


def test_a_number_beyond_all_floats_is_still_json() -> None:
    given_values = {"n": [1e999, {"d": -1e999}], "f": 1.5}
    code, _ = variables(DENO_KERNEL).request(given_values)
    text = json.loads(code[code.index('"{') : -1])
    assert "Infinity" not in text
    assert "Infinity" not in variables(BASH_KERNEL).request(given_values)[1]["n"]


def test_a_notebook_has_them_as_source() -> None:
    assert variables(DENO_KERNEL).source("d", {"a": None}) == 'globalThis.d = {"a": null};'
    assert variables(PYTHON_KERNEL).source("d", {"a": None}) == "d = {'a': None}"
    assert variables(BASH_KERNEL).source("d", {"a": None}) == """export d='{"a": null}'"""


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_quoted_text_is_one_word_of_a_shell(text: str) -> None:
    said = subprocess.run(["bash", "-c", f"printf %s {shell_quoted(text)}"], capture_output=True, check=True)
    assert said.stdout.decode() == text


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"A": "x" * 131_069}, None),
        ({"A": "x" * 131_070}, "131071 bytes in A"),
        ({"A": "ü" * 65_535}, "131071 bytes in A"),
        ({"A": {"b": "\0"}}, None),
        ({"A": "a\0"}, "NUL in the value of A"),
        ({f"A{n}": "x" * 130_000 for n in range(8)}, None),
        ({f"A{n}": "x" * 130_000 for n in range(9)}, "1048576 bytes"),
    ],
)
def test_what_fits_into_no_environment_is_said(values: dict[str, Any], fault: str | None) -> None:
    found = variables(BASH_KERNEL).fault(values)
    assert (found is None) if fault is None else (found is not None and fault in found)


def test_a_kernelspec_that_is_not_known_takes_no_variables() -> None:
    traits = traits_of("ir")
    assert (traits.title, traits.display_name, traits.variables, traits.sets_env) == ("ir", "ir", None, False)
