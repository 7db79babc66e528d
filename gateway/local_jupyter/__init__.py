"""Kernels for Jupyter tools of this machine, in Cellblock's containers, without a gateway and without a database.

jupyter_client loads `provisioner`, which starts a `bridge`: a process of its own that has the container and speaks
Jupyter's ZMQ protocol to whoever has the connection file. `kernelspec` writes the files by which a tool finds this.
"""
