"""The configuration: file, environment, and every refusal names the key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.one_off import own_environment
from gateway.config import reference
from gateway.config.loader import load, parse_size
from gateway.config.sections import SECTIONS, Config, ServerSection
from sessions.errors import Misconfigured
from sessions.languages import DEFAULT_LANGUAGES

REPOSITORY = Path(__file__).parents[2]
HASH = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None, {}) == Config()


def test_the_file_in_the_repository_spells_out_the_defaults() -> None:
    assert load(REPOSITORY / "config.yaml", {}) == Config()


def test_the_file_in_the_repository_has_every_key() -> None:
    written = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    known = {title: {*section.__struct_encode_fields__} for title, section in SECTIONS.items()}
    assert {title: {*keys} for title, keys in written.items() if title != "languages"} == known


def test_the_committed_reference_is_up_to_date() -> None:
    assert (REPOSITORY / "docs" / "configuration.md").read_text() == reference.render(), "see the page's first lines"


def test_the_reference_gives_defaults_and_bounds_as_a_person_would_write_them() -> None:
    rows = {line.split("`")[1]: line for line in reference.render().splitlines() if line.startswith("| `")}
    assert "| size | `1M` | at least 1, at most 8M | `CELLBLOCK_LIMITS_OUTPUT_BYTES` |" in rows["limits.output_bytes"]
    assert "| seconds | `30` | above 0, at most 2592000 |" in rows["limits.timeout"]


def test_a_file_is_found_by_its_variable_and_in_the_working_directory(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("server: {port: 9001}")
    assert load(None, {"CELLBLOCK_CONFIG": str(file)}).server.port == 9001
    monkeypatch.chdir(file.parent)
    assert load(None, {}).server.port == 9001


def test_the_environment_wins_over_the_file(file: Path) -> None:
    file.write_text("server: {port: 9001, host: 127.0.0.2}\nlimits: {memory: 1G}")
    config = load(file, {"CELLBLOCK_SERVER_PORT": "9002", "CELLBLOCK_LIMITS_MEMORY": "512M", "PORT": "9003"})
    assert (config.server.port, config.server.host, config.limits.memory_bytes) == (9002, "127.0.0.2", 512 << 20)


def test_a_value_can_be_in_a_file_that_a_variable_names(file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("postgresql://u:p#w@db/cells\n")
    file.write_text("database: {url: postgresql://other/}")
    named = {"CELLBLOCK_DATABASE_URL_FILE": str(secret)}
    assert load(file, named).database.url == "postgresql://u:p#w@db/cells"
    with pytest.raises(Misconfigured, match="Both CELLBLOCK_DATABASE_URL and CELLBLOCK_DATABASE_URL_FILE are set"):
        load(file, {**named, "CELLBLOCK_DATABASE_URL": "postgresql://db/"})
    with pytest.raises(Misconfigured, match="CELLBLOCK_DATABASE_URL_FILE names, cannot be read: No such file"):
        load(file, {"CELLBLOCK_DATABASE_URL_FILE": "/nonexistent"})
    with pytest.raises(Misconfigured, match="CELLBLOCK_DATABASE_ULR_FILE"):
        load(file, {"CELLBLOCK_DATABASE_ULR_FILE": str(secret)})


@pytest.mark.parametrize("content", ["", "\n", " \r\n"])
def test_a_file_with_no_value_in_it_is_refused(file: Path, tmp_path: Path, content: str) -> None:
    file.write_text("{}")
    (tmp_path / "secret").write_text(content)
    with pytest.raises(Misconfigured, match="CELLBLOCK_DATABASE_URL_FILE names, is empty"):
        load(file, {"CELLBLOCK_DATABASE_URL_FILE": str(tmp_path / "secret")})


def test_a_one_off_gateway_has_its_own_settings_whatever_a_file_says(file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("postgresql://u:p@db/cells\n")
    file.write_text("{}")
    given = {"CELLBLOCK_DATABASE_URL_FILE": str(secret), "CELLBLOCK_BUILD_PROXY_FILE": str(secret)}
    config = load(file, own_environment(given, tmp_path))
    assert (config.database.url, config.build.proxy) == ("", "postgresql://u:p@db/cells")


@pytest.mark.parametrize("written", ["off", '"off"', "false"])
def test_the_zygote_is_switched_off_however_yaml_reads_the_word(file: Path, written: str) -> None:
    assert load(file_with(file, f"engine: {{zygote: {written}}}"), {}).engine.zygote == "off"
    assert load(None, {"CELLBLOCK_ENGINE_ZYGOTE": "off"}).engine.zygote == "off"


@pytest.mark.parametrize("written", ["on", "of", "''"])
def test_the_zygote_has_two_settings(file: Path, written: str) -> None:
    with pytest.raises(Misconfigured, match=r'"engine\.zygote" must be auto or off'):
        load(file_with(file, f"engine: {{zygote: {written}}}"), {})


@pytest.mark.parametrize(
    ("key", "most"), [("output_bytes", "8M"), ("image_bytes", "64M"), ("file_bytes", "64M"), ("request_bytes", "32M")]
)
def test_what_passes_as_one_message_has_a_largest_size(file: Path, key: str, most: str) -> None:
    size_bytes = parse_size(most, key)
    assert getattr(load(file_with(file, f"limits: {{{key}: {most}}}"), {}).limits, key) == size_bytes
    with pytest.raises(Misconfigured, match=f'"limits.{key}" must be a whole number of at most {size_bytes}$'):
        load(file_with(file, f"limits: {{{key}: {size_bytes + 1}}}"), {})


def file_with(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def test_port_alone_sets_the_port(file: Path) -> None:
    file.write_text("server: {port: 9001}")
    assert load(file, {"PORT": "9003"}).server.port == 9003


def test_what_is_there_for_clients_does_not_hinder_a_gateway(file: Path) -> None:
    """Who has named a gateway for the client and `cellblock run` runs `cellblock doctor` in the same shell."""
    file.write_text("server: {port: 9001}")
    assert load(file, {"CELLBLOCK_URL": "https://cells.example.org", "CELLBLOCK_TOKEN": "t"}) == load(file, {})


def test_lists_in_the_environment_are_yaml_or_have_commas(file: Path) -> None:
    file.write_text("")
    by_yaml = load(file, {"CELLBLOCK_SERVER_ALLOWED_ORIGINS": "[https://a.example, https://b.example]"})
    by_comma = load(file, {"CELLBLOCK_SERVER_ALLOWED_ORIGINS": "https://a.example, https://b.example"})
    assert by_yaml == by_comma
    assert by_comma.server.allowed_origins == ("https://a.example", "https://b.example")


def test_a_text_key_is_not_read_as_yaml(file: Path) -> None:
    file.write_text("")
    assert load(file, {"CELLBLOCK_BUILD_PROXY": "null"}).build.proxy == "null"


def test_languages_can_be_set_one_by_one_or_whole(file: Path) -> None:
    file.write_text("languages: {python: python3}")
    assert load(file, {"CELLBLOCK_LANGUAGES_R": "ir"}).languages == {"python": "python3", "r": "ir"}
    assert load(file, {"CELLBLOCK_LANGUAGES": "{R: ir}"}).languages == {"r": "ir"}


def test_the_environment_that_a_run_may_have_stands_among_the_languages(file: Path) -> None:
    file.write_text("languages: {R: ir, env_allowed: [A, b_1, A]}")
    config = load(file, {})
    assert (config.languages, config.env_allowed) == ({"r": "ir"}, ("A", "b_1"))
    assert load(file, {"CELLBLOCK_LANGUAGES": "{R: ir}"}).env_allowed == ()
    file.write_text("languages: {env_allowed: }")
    assert load(file, {}) == Config()
    for text in ("A, B", "[A, B]"):
        config = load(file, {"CELLBLOCK_LANGUAGES_ENV_ALLOWED": text})
        assert (config.languages, config.env_allowed) == (DEFAULT_LANGUAGES, ("A", "B"))
    file.write_text("")
    assert load(file, {"CELLBLOCK_LANGUAGES_ENV_ALLOWED": "A"}).env_allowed == ("A",)
    both = {"CELLBLOCK_LANGUAGES": "{R: ir}", "CELLBLOCK_LANGUAGES_ENV_ALLOWED": "A"}
    assert (load(file, both).languages, load(file, both).env_allowed) == ({"r": "ir"}, ("A",))


def test_tokens_are_hashes_with_or_without_a_tenant(file: Path) -> None:
    file.write_text(f"auth: {{tokens: [{HASH}, {{tenant: alice, sha256: {HASH.upper()}}}]}}")
    auth = load(file, {}).auth
    assert [token.tenant for token in auth.tokens] == ["default", "alice"]
    assert auth.is_required
    assert load(file, {"CELLBLOCK_AUTH_REQUIRED": "false"}).auth.is_required is False
    assert load(file, {"CELLBLOCK_AUTH_TOKENS": HASH}).auth.tokens[0].sha256 == HASH


@pytest.mark.parametrize(
    ("text", "environ", "words"),
    [
        ("server: {prot: 1}", {}, ["server.prot", '"port"']),
        ("sever: {port: 1}", {}, ['"sever"', '"server"']),
        ("", {"CELLBLOCK_SERVER_PROT": "1"}, ["CELLBLOCK_SERVER_PROT", "CELLBLOCK_SERVER_PORT"]),
        ("", {"CELLBLOCK_SERVER_PORT": "x"}, ["server.port", "a whole number"]),
        ("", {"PORT": "http"}, ["server.port", "a whole number"]),
        ("server: {port: 65536}", {}, ["server.port", "65535"]),
        ("server: {port: true}", {}, ["server.port", "a whole number"]),
        ("limits: {timeout: .nan}", {}, ["limits.timeout"]),
        ("limits: {timeout: .inf}", {}, ["limits.timeout"]),
        ("limits: {timeout: 700}", {}, ["limits.timeout", "limits.max_timeout"]),
        ("limits: {memory: lots}", {}, ["limits.memory", "512M"]),
        ("limits: {memory: [1]}", {}, ["limits.memory"]),
        ("auth: {tokens: [{sha256: secret}]}", {}, ["auth.tokens[0].sha256"]),
        ("auth: {tokens: [{tenat: a}]}", {}, ["tenat", '"tenant"']),
        ("engine: {name: dokcer}", {}, ["engine.name", "docker"]),
        ("server: {public_url: cells.example.org}", {}, ["server.public_url"]),
        ("server: {allowed_origins: ['*']}", {}, ["server.allowed_origins"]),
        ("server: {allowed_origins: ['null']}", {}, ["server.allowed_origins"]),
        ("pool: {size: 9, max: 3}", {}, ["pool.size", "pool.max"]),
        ("languages: {}", {}, ["languages"]),
        ("languages: [python]", {}, ["languages"]),
        ("languages: {env_allowed: API_KEY}", {}, ["languages.env_allowed", "a list"]),
        ("languages: {env_allowed: [1]}", {}, ["languages.env_allowed", "a list"]),
        ("languages: {env_allowed: [A=B]}", {}, ["languages.env_allowed", "A=B"]),
        ("env_allowed: [A]", {}, ['"env_allowed"']),
        ("server: [1]", {}, ['"server"']),
        ("[1]", {}, ["sections"]),
        ("server: {", {}, ["not valid YAML"]),
        ("a: " + "[" * 3000, {}, ["not valid YAML"]),
        ("server: {host: 0.0.0.0}", {}, ["server.host", "auth.required"]),
        (f"{{server: {{host: 0.0.0.0}}, auth: {{required: false, tokens: [{HASH}]}}}}", {}, ["auth.required"]),
        (f"{{server: {{host: '::'}}, auth: {{tokens: [{HASH}]}}, engine: {{name: process}}}}", {}, ["process engine"]),
    ],
)
def test_what_is_wrong_is_said_by_its_key(file: Path, text: str, environ: dict[str, str], words: list[str]) -> None:
    file.write_text(text)
    with pytest.raises(Misconfigured) as caught:
        load(file, environ)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "secret" not in message
    assert "\n" not in message


def test_a_missing_or_binary_file_is_said_by_its_path(file: Path) -> None:
    with pytest.raises(Misconfigured, match=r"config\.yaml cannot be read: No such file"):
        load(file, {})
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(Misconfigured, match="not UTF-8"):
        load(file, {})


@pytest.mark.parametrize("auth", [f"tokens: [{HASH}]", "required: true"])
def test_listening_beyond_loopback_with_tokens_and_docker_is_fine(file: Path, auth: str) -> None:
    file.write_text(f"{{server: {{host: 0.0.0.0}}, auth: {{{auth}}}, engine: {{name: docker}}}}")
    assert load(file, {}).is_loopback is False


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),  # noqa: S104 - a word here
        ("", False),
        ("::", False),
        ("localhost.example.org", False),
        ("192.168.0.1", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:  # noqa: FBT001 - a parameter of the table
    assert Config(server=ServerSection(host=host)).is_loopback is expected


@given(st.integers(0, 10**6), st.sampled_from(["", "k", "M", "g", "T"]), st.sampled_from(["", "b", "iB"]))
def test_human_sizes_count_in_1024s(number: int, unit: str, suffix: str) -> None:
    text = f"{number} {unit}{suffix if unit else suffix.replace('i', '')}"
    assert parse_size(text, "x") == number * 1024 ** ("kmgt".index(unit.lower()) + 1 if unit else 0)


@given(st.text())
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        assert parse_size(text, "x") >= 0
    except Misconfigured as error:
        assert '"x"' in str(error)  # noqa: PT017 - the other outcome is allowed too


def test_the_data_directory_follows_the_user(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("")
    config = load(file, {})
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert config.data_dir({}) == Path("/var/lib/cellblock")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert config.data_dir({"XDG_DATA_HOME": "/x"}) == Path("/x/cellblock")
    assert load(file, {"CELLBLOCK_SERVER_DATA_DIR": "/tmp/y"}).data_dir({}) == Path("/tmp/y")
