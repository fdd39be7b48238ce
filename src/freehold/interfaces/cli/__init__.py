"""The `freehold` command: one module for each family of commands, loaded when it is called."""
