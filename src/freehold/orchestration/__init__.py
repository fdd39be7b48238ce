"""Lifecycle table, pure planner, engine and store."""
