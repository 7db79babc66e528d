"""What is measured: each module measures one thing for all contestants, in turn, and returns plain figures."""
