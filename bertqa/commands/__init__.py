"""One file per command: flags and printing only."""
