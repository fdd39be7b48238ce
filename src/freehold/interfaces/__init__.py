"""Command line; thin: it calls, it does not decide."""
