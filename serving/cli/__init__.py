"""The command `polyhead`: a module for each group of commands."""
