"""The executed sovereignty test, its seven questions and the maturity stage."""
