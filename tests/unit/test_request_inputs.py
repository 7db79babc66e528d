"""`files`, `fetch` and `env` of requests: what is accepted, and what each refusal names."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import pytest

from gateway.http.parse import run_inputs, run_request, session_request, socket_messages
from gateway.http.parse.body import fields_of, parse_json_object
from gateway.http.parse.urls import file_in
from sessions.errors import InvalidRequest
from sessions.inputs import RunInputs
from sessions.model import RunRequest, TenantId
from sessions.settings import Limits, SessionLimits

ALLOWED = ("API_KEY", "LANG")


def request_of(fields: run_request.RunFields) -> RunRequest:
    return run_request.run_request(
        fields, tenant=TenantId("t"), languages={"python": "python3"}, limits=Limits(), env_allowed=ALLOWED
    )


def inputs_of(**fields: Any) -> RunInputs | None:
    body = json.dumps({"code": "1", **fields}).encode()
    return request_of(fields_of(run_request.RunFields, parse_json_object(body))).inputs


def session_of(**fields: Any) -> Any:
    return session_request.session_request(
        fields, tenant=TenantId("t"), languages={"python": "python3"}, limits=SessionLimits()
    )


def test_files_are_text_or_base64_with_or_without_line_breaks() -> None:
    data = bytes(range(256))
    files = {
        "a.csv": {"text": "é,\0\n"},
        "d/b": {"base64": base64.b64encode(data).decode()},
        "d/c": {"base64": base64.encodebytes(data).decode(), "text": None},
        "empty": {"text": ""},
        "none": {"base64": ""},
    }
    assert inputs_of(files=files, fetch=["a.csv", "x"], env={"API_KEY": "é\n"}) == RunInputs(
        {"a.csv": "é,\0\n".encode(), "d/b": data, "d/c": data, "empty": b"", "none": b""},
        ("a.csv", "x"),
        {"API_KEY": "é\n"},
    )


@pytest.mark.parametrize("empty", [{}, {"files": {}, "fetch": [], "env": {}}, {"files": None, "fetch": None}])
def test_nothing_is_given_where_nothing_is_in_the_fields(empty: dict[str, Any]) -> None:
    assert inputs_of(**empty) is None


PATHS = ["", "/a", "a//b", "../a", "a/..", "./a", "a/", "\0", "a" * 1025, "a" * 256, "é" * 128, "\ud800"]
PATHS += [".cellblock-x", "a/.cellblock-x/b"]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_cannot_be_a_files_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest, match=r'^"files"'):
        inputs_of(files={path: {"text": ""}})
    with pytest.raises(InvalidRequest, match=r'^"fetch"'):
        inputs_of(fetch=["ok", path])


@pytest.mark.parametrize("path", ["a", "a/b c/d.csv", "é/ü", "..a", "a..b/...", ".hidden", "-x", "a\nb", "a" * 255])
def test_what_urls_of_files_may_name_a_run_may_be_given(path: str) -> None:
    assert file_in(f"/sessions/s/files/{path}") == path
    assert inputs_of(files={path: {"text": ""}}, fetch=[path]) == RunInputs({path: b""}, (path,))


FILES: dict[str, tuple[Any, str]] = {
    "a list": ([], '"files" must be an object'),
    "a text": ("x", '"files" must be an object'),
    "a file that is a text": ({"a": "x"}, '"a" must be an object'),
    "both": ({"a": {"text": "", "base64": ""}}, 'either "text" or "base64"'),
    "neither": ({"a": {}}, 'either "text" or "base64"'),
    "null": ({"a": {"text": None}}, 'either "text" or "base64"'),
    "another field": ({"a": {"txt": "x"}}, '"txt", did you mean "text"?'),
    "a number": ({"a": {"text": 1}}, '"text" must be a string'),
    "bad base64": ({"a": {"base64": "x"}}, '"base64" is not valid'),
    "other letters": ({"a": {"base64": "é==="}}, '"base64" is not valid'),
    "more behind the end": ({"a": {"base64": "YQ==YQ=="}}, '"base64" is not valid'),
    "of the alphabet for URLs": ({"a": {"base64": "_-8="}}, '"base64" is not valid'),
    "a lone surrogate": ({"a": {"text": "\ud800"}}, "lone surrogate"),
    "a file and a directory": ({"a.b": {"text": ""}, "a/b/c": {"text": ""}, "a": {"text": ""}}, '"a" as a file'),
    "deeper": ({"a/b": {"text": ""}, "a/b/c/d": {"text": ""}, "a/b.c": {"text": ""}}, '"a/b" as a file'),
    "too many": ({str(number): {"text": ""} for number in range(1001)}, "more than 1000"),
}


@pytest.mark.parametrize(("files", "said"), FILES.values(), ids=FILES)
def test_files_that_are_refused_are_named(files: Any, said: str) -> None:
    for make in (inputs_of, session_of):
        with pytest.raises(InvalidRequest) as caught:
            make(files=files)
        assert str(caught.value).startswith('"files"')
        assert said in str(caught.value)


def test_neighbours_in_name_are_no_directories_of_each_other() -> None:
    paths = ["a", "a.b", "a-/b", "ab/c", "b/a", "b/ab"]
    given = inputs_of(files={path: {"text": ""} for path in paths})
    assert given is not None
    assert [*given.files] == paths


def test_two_files_of_one_path_are_refused_and_other_names_are_as_in_any_json() -> None:
    body = b'{"code": "1", "variables": {"x": 1, "x": 2}, "files": {"a": {"text": "1"}, "b": {"text": ""}%s}}'
    fields = fields_of(run_request.RunFields, parse_json_object(body % b""))
    assert request_of(fields).variables == {"x": 2}
    with pytest.raises(InvalidRequest, match='"files" has "a" more than once'):
        request_of(fields_of(run_request.RunFields, parse_json_object(body % b', "a": {"text": "2"}')))
    escaped = (body % b', "\\u0061": {"text": "2"}').replace(b'"files"', b'"\\u0066i\\u006Ces"')
    with pytest.raises(InvalidRequest, match='"files" has "a" more than once'):
        request_of(fields_of(run_request.RunFields, parse_json_object(escaped)))
    with pytest.raises(InvalidRequest, match='"files" has "a" more than once'):
        request_of(run_request.from_text({"code": "1", "files": '{"a": {"text": ""}, "a": {"text": ""}}'}))


FETCH: dict[str, tuple[Any, str]] = {
    "an object": ({}, "must be a list"),
    "a text": ("a", "must be a list"),
    "a number": ([1], "must be a list"),
    "twice": (["a", "b", "a"], '"a" more than once'),
    "too many": ([str(number) for number in range(101)], "more than 100"),
}


@pytest.mark.parametrize(("fetch", "said"), FETCH.values(), ids=FETCH)
def test_what_is_to_be_fetched_may_be_refused(fetch: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        inputs_of(fetch=fetch)
    assert str(caught.value).startswith('"fetch"')
    assert said in str(caught.value)


def test_a_hundred_files_may_be_fetched() -> None:
    given = inputs_of(fetch=[str(number) for number in range(100)])
    assert given is not None
    assert len(given.fetch) == 100


SECRET = "s3cret"  # noqa: S105
ENV: dict[str, tuple[Any, str]] = {
    "a list": ([SECRET], "must be an object of strings"),
    "a number": ({"LANG": 1}, '"LANG" is none'),
    "null": ({"LANG": None}, '"LANG" is none'),
    "a name that is not allowed": ({"PATH": SECRET, "LANG": ""}, 'lists: API_KEY, LANG; not "PATH".'),
    "of another case": ({"lang": SECRET}, 'not "lang".'),
    "many": ({f"N{number}": SECRET for number in range(7)}, '"N4" and 2 more.'),
    "NUL": ({"LANG": SECRET + "\0"}, "has a NUL"),
    "too long": ({"LANG": SECRET * 6000}, "over 32768 bytes"),
    "a lone surrogate": ({"LANG": SECRET + "\ud800"}, "lone surrogate"),
}


@pytest.mark.parametrize(("env", "said"), ENV.values(), ids=ENV)
def test_an_environment_that_is_refused_is_named_and_not_shown(env: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        inputs_of(env=env)
    assert str(caught.value).startswith('"env"')
    assert said in str(caught.value)
    assert SECRET not in str(caught.value)


def test_where_no_name_is_allowed_none_is() -> None:
    fields = run_request.from_text({"code": "1", "env": '{"A": "1"}'})
    with pytest.raises(InvalidRequest, match='which are none; not "A"'):
        run_request.run_request(fields, tenant=TenantId("t"), languages={"python": "python3"}, limits=Limits())


def test_in_forms_and_queries_they_are_json_strings() -> None:
    texts = {"files": '{"a": {"text": "1"}}', "fetch": '["b"]', "env": '{"LANG": "C"}'}
    fields = run_request.from_text({"code": "1", **texts})
    assert request_of(fields).inputs == RunInputs({"a": b"1"}, ("b",), {"LANG": "C"})
    assert request_of(run_request.from_text({"code": "1", **dict.fromkeys(texts, "")})).inputs is None
    for name in texts:
        with pytest.raises(InvalidRequest, match=f'^"{name}" is not valid JSON'):
            run_request.from_text({"code": "1", name: "{"})


def test_a_message_of_a_web_socket_has_them_too() -> None:
    message = socket_messages.typed({"op": "run", "code": "1", "files": {"a": {"text": "1"}}, "fetch": ["b"]})
    assert isinstance(message, socket_messages.RunMessage)
    assert request_of(message).inputs == RunInputs({"a": b"1"}, ("b",))


def test_a_session_takes_files_and_says_where_an_environment_belongs() -> None:
    assert session_of(files={"a": {"text": "1"}}).files == {"a": b"1"}
    with pytest.raises(InvalidRequest, match='"env" is for one run'):
        session_of(env={"LANG": "C"})
    for make, name in ((session_of, "fetch"), (renewal_of, "files"), (renewal_of, "env")):
        with pytest.raises(InvalidRequest, match=f'There is no field "{name}"'):
            make(**{name: {}})


def renewal_of(**fields: Any) -> object:
    return session_request.renewal(fields, SessionLimits())


def calls_for(path: str) -> int:
    """How many calls of Python functions it takes to check the path of a file."""
    files = {path: {"text": ""}}
    counted = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal counted
        counted += event == "call"

    sys.setprofile(count)
    try:
        run_inputs.input_files(files)
    finally:
        sys.setprofile(None)
    return counted


def test_what_a_path_costs_does_not_grow_with_its_parts() -> None:
    of_many, of_few = "/".join("a" * 500), "/".join(["a" * 199] * 5)
    assert len(of_many) == len(of_few)
    assert calls_for(of_many) == calls_for(of_few)


@pytest.mark.parametrize("beside", ["a-b", "a b", "a.b", "a\x01", "a0"])
def test_a_directory_that_is_a_file_is_found_whatever_sorts_in_between(beside: str) -> None:
    with pytest.raises(InvalidRequest, match='"a" as a file and as a directory'):
        run_inputs.input_files({name: {"text": ""} for name in ("a/b", beside, "a")})
