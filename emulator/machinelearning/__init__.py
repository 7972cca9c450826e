"""Microsoft.MachineLearningServices: workspaces, computes, assets, jobs with their history, online endpoints."""
