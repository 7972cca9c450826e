"""`pulumi-resource-azure-native`: what the real Pulumi CLI starts, with its own address as the only argument."""

from __future__ import annotations

from emulator.pulumi_provider.server import serve

if __name__ == "__main__":
    serve()
