"""Kernels for Jupyter tools of this machine, in Cellblock's containers, without a gateway and without a database.

`provisioner` is what jupyter_client loads. It starts a `bridge`, a process of its own, which has the container and
speaks Jupyter's ZMQ protocol to whoever has the connection file. `kernelspec` is how a tool finds it all.
"""
