"""What the steps of `chat_completion_pipeline` run on their node. Uploaded as it lies here: its modules see each other
by their bare names and nothing else of the emulator.
"""
