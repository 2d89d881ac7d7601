"""What is wrong with a data set, and what can be repaired without a guess."""
