"""Commands that measure this project beside its peers; see docs/speed.md."""
