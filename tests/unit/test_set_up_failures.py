"""What is said when pip, or the build of the image, has failed."""

from __future__ import annotations

import sys

import pytest

from sessions.errors import SetUpFailed
from sessions.provisioners.programs import run_program
from sessions.provisioners.set_up_failures import set_up_failure, why_of

NO_NETWORK = (
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...: Failed to establish a new "
    "connection: [Errno -3] Temporary failure in name resolution')': /simple/numpy/"
)
NONE_FOUND = "ERROR: Could not find a version that satisfies the requirement numpy (from versions: none)"
NO_NUMPY = "ERROR: No matching distribution found for numpy"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([NO_NETWORK, NONE_FOUND, NO_NUMPY], "no package index is in reach"),
        ([NONE_FOUND, NO_NUMPY], "there is no such package for this Python: numpy."),
        (
            [
                NO_NETWORK,  # and then the index answered
                "ERROR: Could not find a version that satisfies the requirement numpy==99 (from versions: 1.0, 2.0)",
                "ERROR: No matching distribution found for numpy==99 (from -r /opt/requirements.txt (line 1))",
            ],
            "there is no such version for this Python: numpy==99.",
        ),
        (["ERROR: ResolutionImpossible: for help visit https://pip.pypa.io"], "its packages exclude one another"),
        (["ERROR: Invalid requirement: 'numpy=2': Expected end"], "'numpy=2' is no requirement"),
        (
            ["SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] self-signed'))"],
            "`build.ca_bundle`",
        ),
        (["ERROR: [Errno 28] No space left on device"], "the disk is full"),
        (["ModuleNotFoundError: No module named 'polars'"], "there is no module polars. Correct `build.preload`"),
        (["Err:1 http://mirror.example Temporary failure resolving 'mirror.example'"], "no package index is in reach"),
        (["error: subprocess-exited-with-error"], ""),
        ([], ""),
    ],
)
def test_the_usual_reasons_are_told_in_a_sentence(lines: list[str], said: str) -> None:
    assert said in why_of(lines)
    assert bool(why_of(lines)) is bool(said)


def test_one_sentence_comes_first_and_the_last_lines_below_it() -> None:
    lines = [*map(str, range(20)), NONE_FOUND, NO_NUMPY]
    first, *rest = str(set_up_failure("The image could not be built", lines, "code 1")).splitlines()
    assert first.startswith("The image could not be built: there is no such package for this Python: numpy. Correct ")
    assert rest == ["The last lines were:", "  17", "  18", "  19", f"  {NONE_FOUND}", f"  {NO_NUMPY}", "  code 1"]
    unknown = str(set_up_failure("It failed", ["a"], "it ended with code 1"))
    assert unknown == "It failed: it ended with code 1.\nThe last lines were:\n  a"
    assert str(set_up_failure("It failed", [], "it ended with code 1")) == "It failed: it ended with code 1."


async def test_a_program_that_fails_says_why() -> None:
    heard: list[str] = []
    program = [sys.executable, "-c", f"print({NONE_FOUND!r}); print({NO_NUMPY!r}); raise SystemExit(3)"]
    with pytest.raises(SetUpFailed, match="Setting up failed: there is no such package"):
        await run_program(program, heard.append, failed="Setting up failed")
    assert heard == [NONE_FOUND, NO_NUMPY]
