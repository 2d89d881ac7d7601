"""Exercises for readers of the code: see docs/exercises.md."""
