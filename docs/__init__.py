"""The guided tour of the code, and the command that keeps it true; see tour.md."""
