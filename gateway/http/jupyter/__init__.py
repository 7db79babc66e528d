"""The routes of Jupyter's REST API, and the kernel's WebSocket."""
