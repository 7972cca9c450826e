"""Questions with expected answers, put to an endpoint: how good, how fast, and better or worse than another version."""
