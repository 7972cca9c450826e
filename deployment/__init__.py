"""From a registered model to a managed online endpoint that serves it."""
