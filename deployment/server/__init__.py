"""The server inside the endpoint's container: one ASGI app, one contract, a continuous batcher behind it.

    contract.py   what callers may say (OpenAI's dialect and the guide's) and what they get back
    app.py        routes, limits, streaming, cancellation
    batcher.py    one thread that owns the model and decodes all requests together
    decoding.py   the next token of a row, and the text of a growing list of tokens
    model.py      where the model lies and how it is loaded

It travels into the image with `training/prompt.py` and `infra/cli.py` and imports nothing else of the project.
"""
