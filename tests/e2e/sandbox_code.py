"""Source text that attacks put in front of their own: system calls by name, and a way to the gateway's socket."""

from __future__ import annotations

import json
from typing import Any

from kernel_image.protocol import PROTOCOL_VERSION
from sessions.model import Result

CALLS = """
import ctypes, errno, json, os, signal, socket, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)

def call(function, *arguments):
    ctypes.set_errno(0)
    failed = function(*arguments) == -1
    return errno.errorcode[ctypes.get_errno()] if failed else 'succeeded'

def attempt(act, *arguments):
    try:
        act(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)
    return 'succeeded'

def write(path, text='1'):
    with open(path, 'w') as file:
        file.write(text)

def read(path):
    with open(path, 'rb') as file:
        return file.read(1)
"""

SOCKET = (
    CALLS
    + f"PROTOCOL_VERSION = {PROTOCOL_VERSION}"
    + r"""
HANDSHAKE = (b'GET /supervisor HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
             b'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n'
             b'Sec-WebSocket-Protocol: v1.kernel.websocket.jupyter.org\r\n\r\n')

def dial():
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    connection.connect('/run/gateway/s')
    return connection

def shake_hands():
    connection = dial()
    connection.sendall(HANDSHAKE)
    head = b''
    while b'\r\n\r\n' not in head:
        piece = connection.recv(1)
        if not piece:
            raise ConnectionError('turned away')
        head += piece
    assert b' 101 ' in head.splitlines()[0], head
    return connection

def frame(opcode, payload):
    size = len(payload)
    if size < 126:
        head = struct.pack('!BB', 0x80 | opcode, 0x80 | size)
    elif size < 65536:
        head = struct.pack('!BBH', 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack('!BBQ', 0x80 | opcode, 0x80 | 127, size)
    return head + bytes(4) + payload

def hello(**fields):
    usual = {'op': 'hello', 'protocol': PROTOCOL_VERSION, 'boot_id': 'b', 'oldest_seq': 1, 'next_seq': 1}
    return frame(1, json.dumps({**usual, **fields}).encode())

def answer(connection):
    said = b''
    try:
        while piece := connection.recv(65536):
            said += piece
    except ConnectionError:
        return said.decode('latin-1') + '|reset'
    except TimeoutError:
        return said.decode('latin-1') + '|open'
    return said.decode('latin-1') + '|closed'

def say(*pieces):
    connection = shake_hands()
    try:
        for piece in pieces:
            connection.sendall(piece)
    except ConnectionError:
        pass
    return answer(connection)
"""
)

FORGE = (
    CALLS
    + """
kernel = get_ipython().kernel
parent = kernel.get_parent('shell')
ident = kernel._parent_ident['shell']

def header(msg_type):
    return kernel.session.msg_header(msg_type)

def publish(*parts):
    raw = [part if isinstance(part, bytes) else json.dumps(part, default=str).encode() for part in parts]
    kernel.iopub_thread.send_multipart([b'topic', b'<IDS|MSG>', kernel.session.sign(raw[:4]), *raw])

def reply(content):
    # In the thread of that socket: from another one, libzmq may abort the process.
    sent = threading.Event()
    def send():
        kernel.session.send(kernel.shell_stream, 'execute_reply', content, parent=parent, ident=ident)
        kernel.shell_stream.flush()
        sent.set()
    kernel.shell_channel_thread.io_loop.add_callback(send)
    sent.wait()
"""
)


def said(result: Result) -> Any:
    """What the code printed last, as JSON; its own error is shown when it has printed none."""
    assert result.output, (result.status, result.error, result.stderr)
    return json.loads(result.output.splitlines()[-1])
