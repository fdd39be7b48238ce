"""Freehold: a sovereign bare metal orchestrator."""
