"""The real doers: one module for each part of the lifecycle, one function for each step of `planner.GOALS`."""
