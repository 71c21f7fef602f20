"""Public collections of questions, brought into our table: one file each."""
