"""Benchmarks that compare bertqa with its peers; see docs/speed.md."""
