"""The tour of the code (tour.md), and the command that updates it."""
