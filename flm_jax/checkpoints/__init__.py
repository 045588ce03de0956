"""Runs on disk: train states, workdirs, portable folders, object stores."""
