"""Helpers of several tests: networks, runs, files; no tests."""
