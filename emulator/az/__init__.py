"""A small `az` for inside `emulator run`: what AzureCliCredential, and people who sign in first, ask of it."""
