"""A chat over the endpoint that remembers."""
