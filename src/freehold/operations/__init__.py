"""Drift, decommission and sanitization."""
