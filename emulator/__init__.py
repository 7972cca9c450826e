"""A local Azure ML: real clients run unmodified against it; it really runs jobs and serves deployments."""
