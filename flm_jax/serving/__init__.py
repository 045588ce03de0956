"""A server of a loaded model: limits, requests, batches and HTTP."""
