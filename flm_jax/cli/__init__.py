"""Code that every command line shares."""
