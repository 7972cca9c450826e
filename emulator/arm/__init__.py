"""Azure Resource Manager: ids, generic resources, validation, long-running operations."""
