"""Memory, operations and time of programs, measured or planned."""
