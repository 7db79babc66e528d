"""The bridge's program, with the template of the test process: its imports are most of what a kernel's start costs.

`jupyter_rig.py` has it run in place of `gateway.local_jupyter.bridge`.
"""

from __future__ import annotations

import os
import runpy

import shared_template

shared_template.use(os.environ.pop(shared_template.VARIABLE))
runpy.run_module("gateway.local_jupyter.bridge", run_name="__main__", alter_sys=True)
