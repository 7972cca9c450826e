"""A stand-in for Pulumi's azure-native provider: its arguments, translated to ARM requests over plain HTTPS.

It holds no state of its own and knows of no emulator: it signs in with ARM_* and talks to management.azure.com,
whoever answers there. The engine in `emulator.pulumi_cli` calls it in process.
"""
