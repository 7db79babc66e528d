"""The protocol between provisioner and bridge, line by line over the bridge's standard input and output.

The provisioner sends commands of one word; the bridge sends JSON objects with an `event`. When its standard input ends,
the bridge ends too. This module imports nothing: the provisioner runs inside somebody else's program.
"""

from __future__ import annotations

# commands: provisioner -> bridge
INTERRUPT = "interrupt"  # SIGINT to the kernel, as Ctrl-C would send
KILL = "kill"  # kill the kernel process
RESUME = "resume"  # after `ended`: serve the next kernel process, in the same container

# events: bridge -> provisioner
READY = "ready"  # the kernel answers
ENDED = "ended"  # code: as waitpid has it, negative for a signal; reason: a sentence, or empty where it was asked for
FAILED = "failed"  # reason: why there is no kernel; code: that of the error; the bridge ends

ADDRESS_IN_USE = "address_in_use"  # a code of `failed`: it cannot listen where the connection file says
