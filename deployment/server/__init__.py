"""The server inside the endpoint's container."""
