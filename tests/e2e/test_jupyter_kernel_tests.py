"""Jupyter's own conformance suite, jupyter_kernel_test, through the gateway in both framings.

Its tests talk to a kernel over ZMQ; here they do so through jupyter_kernel_client's WebSocket client, which has
the same methods. What the suite has no test for (stdin, interrupt, comms) is in test_jupyter_channels.py. Its
IopubWelcomeTests are left out: the welcome is for who subscribes to ZMQ, and jupyter_server's WebSockets have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import jupyter_kernel_test
import pytest
from client_rig import ALICE, Json
from jupyter_client_rig import FORGETFUL, IN_BINARY, only_these_kernels
from jupyter_kernel_client.manager import KernelHttpManager
from serve_rig import Gateway

PNG = """
import base64
from IPython.display import Image
display(Image(base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)))
"""

pytestmark = [pytest.mark.docker, FORGETFUL]


class OverWebSocket:
    """Where the suite would start a kernel of its own, it gets one of the gateway's."""

    options: ClassVar[Json] = {}
    km: Any
    kc: Any

    @classmethod
    def setUpClass(cls) -> None: ...

    @classmethod
    def tearDownClass(cls) -> None: ...

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def kernel(cls, gateway: Gateway) -> Iterator[None]:
        with only_these_kernels(gateway):
            cls.km = KernelHttpManager(gateway.url, ALICE, **cls.options)
            cls.km.start_kernel("python3", timeout=60)
            cls.kc = cls.km.client
            cls.kc.start_channels()
            cls.kc.wait_for_ready(60)
            yield
            cls.kc.stop_channels()


class TestPython(OverWebSocket, jupyter_kernel_test.KernelTests):
    """Everything that the suite can ask of a kernel."""

    kernel_name = "python3"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = [  # noqa: RUF012 - as the suite declares it
        {"text": "zi", "matches": {"zip"}},
        {"text": "import tokeni", "matches": {"tokenize"}},
    ]
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n"]  # noqa: RUF012
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2"]  # noqa: RUF012
    invalid_code_samples = ["import = 7q"]  # noqa: RUF012
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('told')"
    code_execute_result = [  # noqa: RUF012
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(4)]", "result": "[0, 1, 4, 9]"},
    ]
    code_display_data = [  # noqa: RUF012
        {"code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))", "mime": "text/html"},
        {"code": "from IPython.display import Math, display; display(Math('\\\\frac{1}{2}'))", "mime": "text/latex"},
        {"code": PNG, "mime": "image/png"},
    ]
    code_history_pattern = "1?2*"
    # Not "range": of the current session IPython calls every line one of session 0, which the suite does not expect.
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"


class TestPythonInBinaryFraming(TestPython):
    options = IN_BINARY
