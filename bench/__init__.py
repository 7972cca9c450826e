"""Benchmarks: what the recipes are worth beside the guide's own settings. Results lie in bench/results/, as JSON."""
