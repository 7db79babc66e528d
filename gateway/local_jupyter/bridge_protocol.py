"""What provisioner and bridge say to each other over the bridge's standard input and output, a line at a time.

The provisioner says one word; the bridge answers with JSON objects that have an `event`. When its standard input ends,
the bridge does too. It imports nothing: the provisioner lives in somebody else's program.
"""

from __future__ import annotations

# provisioner -> bridge
INTERRUPT = "interrupt"  # SIGINT to the kernel, as Ctrl-C would send
KILL = "kill"  # end the kernel process, now
RESUME = "resume"  # after `ended`: serve the next kernel process, in the same container

# bridge -> provisioner
READY = "ready"  # the kernel answers
ENDED = "ended"  # code: as waitpid has it, negative for a signal; reason: a sentence, or empty where it was asked for
FAILED = "failed"  # reason: why there is no kernel; the bridge ends
