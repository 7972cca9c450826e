"""The processes behind jobs and deployments, and the folders they see."""
