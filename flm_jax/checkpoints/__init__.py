"""Runs on disk: train states, workdirs, portable folders and object stores."""
