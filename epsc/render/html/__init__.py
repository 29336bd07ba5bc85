"""A schedule, its prediction and its measurement as one page that opens from disk and asks nothing of a network."""

from epsc.render.html.page import page
from epsc.render.html.side import Side, loads_between, sides_data, step_lines

__all__ = ["Side", "loads_between", "page", "sides_data", "step_lines"]
