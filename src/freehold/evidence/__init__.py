"""Append-only transparency log, signed statements, bundles and their offline verifier."""
