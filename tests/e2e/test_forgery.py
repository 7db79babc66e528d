"""User code forging the kernel's own messages: it holds the HMAC key, so every signature here is right.

Whatever it says, the run has one final status, and another tenant's run is served meanwhile.
"""

from __future__ import annotations

import asyncio

import pytest
from e2e_rig import Rig
from sandbox_code import FORGE

from sessions.model import ANONYMOUS, Result, RunRequest, RunStatus

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("settled")]


async def beside(rig: Rig, attack: str, *, timeout_s: float, cancels: bool = False) -> Result:
    """The attack's result, after two runs of somebody else that began later and ended earlier."""
    run_id = await rig.service.begin(RunRequest(ANONYMOUS, attack, "python", {}, timeout_s))
    attacking = asyncio.ensure_future(rig.service.result(run_id))
    await asyncio.sleep(0.7)
    assert (await rig.run("print(1)")).output == "1\n"
    await rig.ask_bystander()
    assert not attacking.done(), attacking.result()
    if cancels:
        await rig.service.cancel(ANONYMOUS, run_id)
    result = await attacking
    assert await asyncio.to_thread(rig.stored_status, run_id) == result.status
    return result


async def test_messages_that_are_not_what_they_say_change_nothing(rig: Rig) -> None:
    result = await rig.run(
        FORGE
        + """
import builtins
print('start')
deep = b'[' * 100_000 + b']' * 100_000
digits = b'9' * 5000
odd = [None, True, [], {}, [[]], 7, -1, 1e999, '', 'x' * 300, '\\ud800', '\\x00', float('nan')]
stream = header('stream')
content = {'name': 'stdout', 'text': 'forged'}
for value in odd:
    publish({**stream, 'msg_type': value}, parent, {}, content)
    publish({'msg_type': value}, {'msg_id': value}, {'cellblock_sent': value}, {'name': value, 'text': value})
    publish(value, value, value, value)
    publish(stream, parent, {'cellblock_sent': ['stdout', value]}, {})
    publish(stream, parent, {'cellblock_sent': [value, value]}, {})
    publish(header('status'), parent, {}, {'execution_state': value})
    publish(header('error'), parent, {}, {'ename': value, 'evalue': value, 'traceback': value})
    publish(header('error'), parent, {}, {'ename': 'E', 'evalue': 'v'})
    publish(header('clear_output'), parent, {}, value)
    publish(header('execute_input'), parent, {}, {'execution_count': value})
    publish(header('update_display_data'), parent, {}, {'data': value, 'transient': {'display_id': value}})
    publish(header('display_data'), parent, {}, {'data': value, 'metadata': value, 'transient': value})
    publish(header('display_data'), parent, {}, {'data': {'image/png': value, 'image/svg+xml': value}})
    publish(header('execute_reply'), parent, {}, {'status': value})
    publish(header('artifact'), parent, {}, {'path': value, 'bytes': value, 'offset': value})
    publish(header('input_request'), parent, {}, {'prompt': value})
    publish(header('comm_open'), parent, {}, {'comm_id': value})
number = b'{"name":"stdout","text":' + digits + b'}'
for raw in (deep, b'{"a":' + deep + b'}', number, digits, b'', b'\\xff\\x00', b'{', b'NaN'):
    publish(stream, parent, {}, raw)
    publish(stream, parent, raw, content if raw is None else {})
    publish(stream, raw, {}, content)
    publish(raw, parent, {}, content)
publish(stream, {'msg_id': 'another run', 'msg_type': 'execute_request'}, {}, content)
publish(stream, {}, {}, content)
publish(stream, parent, {}, {}, *[b'buffer'] * 200)
kernel.iopub_thread.send_multipart([b'topic'])
kernel.iopub_thread.send_multipart([b'topic', b'<IDS|MSG>'])
kernel.iopub_thread.send_multipart([b'<IDS|MSG>', b'wrong', b'{}', b'{}', b'{}', b'{}'])
kernel.iopub_thread.send_multipart([b'<IDS|MSG>', kernel.session.sign([b'{}'] * 3), b'{}', b'{}', b'{}'])
time.sleep(0.5)
print('end')
"""
    )
    assert (result.status, result.output) == (RunStatus.OK, "start\nend\n"), result.error


async def test_a_run_that_forges_its_own_end_has_one_status_and_stops(rig: Rig) -> None:
    result = await rig.run(
        FORGE
        + """
print('before', flush=True)
for _ in range(3):
    reply({'status': 'ok', 'execution_count': 1, 'payload': [], 'user_expressions': {}})
    publish(header('status'), parent, {}, {'execution_state': 'idle'})
time.sleep(0.5)
print('after', flush=True)
time.sleep(60)
""",
        timeout_s=30,
    )
    # It lied about nobody but itself, and whatever it does next it does in a container that is gone.
    assert result.status is RunStatus.OK
    assert "before" in result.output


@pytest.mark.parametrize(
    ("forged", "held_back"),
    [
        ("publish(header('status'), parent, {}, {'execution_state': 'idle'})", "execute_reply"),
        ("reply({'status': 'ok', 'execution_count': 1})", "idle"),
    ],
)
async def test_half_an_end_is_no_end(rig: Rig, forged: str, held_back: str) -> None:
    result = await rig.run(FORGE + forged + "\nprint('made it')\ntime.sleep(60)", timeout_s=2)
    assert result.status is RunStatus.TIMEOUT, held_back
    assert result.output == "made it\n"


async def test_an_end_that_never_comes_is_a_timeout(rig: Rig) -> None:
    result = await rig.run(FORGE + "kernel.session.send = lambda *a, **k: None\nprint('x')", timeout_s=2)
    assert result.status is RunStatus.TIMEOUT


async def test_costly_messages_leave_the_gateway_to_others(rig: Rig) -> None:
    """Decoding just one of these would take seconds; that it is not tried is shown in unit/test_messages.py."""
    result = await beside(
        rig,
        FORGE
        + """
lists = b'{"a":[' + b'[],' * 5_000_000 + b'1]}'
for _ in range(1000):
    for msg_type in ('display_data', 'execute_result', 'stream', 'error', 'clear_output', 'comm_msg'):
        publish(header(msg_type), parent, {}, lists)
""",
        timeout_s=8,
    )
    assert result.status in (RunStatus.TIMEOUT, RunStatus.OOM, RunStatus.KERNEL_DIED)
    assert result.truncated or result.status is RunStatus.OOM


@pytest.mark.parametrize("msg_type", ["status", "clear_output", "update_display_data", "display_data", "comm_msg"])
async def test_endless_messages_leave_the_gateway_to_others(rig: Rig, msg_type: str) -> None:
    result = await beside(
        rig,
        FORGE
        + f"""
content = {{'execution_state': 'busy', 'wait': True, 'data': {{'text/plain': 'x' * 200}}}}
content['transient'] = {{'display_id': 'd'}}
parts = [json.dumps(part, default=str).encode() for part in (header({msg_type!r}), parent, {{}}, content)]
message = [b'topic', b'<IDS|MSG>', kernel.session.sign(parts), *parts]
while True:
    kernel.iopub_thread.send_multipart(message)
""",
        timeout_s=20,
        cancels=True,
    )
    assert result.status in (RunStatus.CANCELLED, RunStatus.OOM), result.error


async def test_requests_to_the_kernels_own_sockets_say_nothing_to_the_gateway(rig: Rig) -> None:
    """Another process in the sandbox, with the key from the connection file, sends the kernel requests of its own."""
    result = await rig.run(
        FORGE
        + """
client = '''
import glob, sys, time
from jupyter_client import BlockingKernelClient
client = BlockingKernelClient(connection_file=sorted(glob.glob('/run/ipc/*.json'))[-1])
client.load_connection_file()
client.start_channels()
client.execute("print('not of this run')")
client.control_channel.send(client.session.msg('kernel_info_request', {}))
print(client.get_control_msg(timeout=10)['msg_type'])
'''
print('before')
print(subprocess.run([sys.executable, '-c', client], capture_output=True, text=True).stdout)
""",
        timeout_s=60,
    )
    # The key opens the kernel's own door, and no further: the kernel answers, and nothing is said in the run's name.
    assert (result.status, result.output) == (RunStatus.OK, "before\nkernel_info_reply\n\n")
