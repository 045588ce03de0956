"""Memory, operations and time, measured or planned."""
