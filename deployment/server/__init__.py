"""The server inside the endpoint's container: one ASGI app, one contract, an engine behind it.

    app.py            routes and errors          connections.py   HTTP: slow callers, SIGTERM
    contract.py       what callers may say       fields.py        its fields, one by one
    replies.py        what they get back         errors.py        the one error they see
    serving.py        the way into the engine    answering.py     and out of it: whole, streamed, cancelled
    safety.py         the content filter, off unless configured
    traces.py         OpenTelemetry, off unless configured
    rows.py           between the routes and an engine
    decoding.py       the next token of a row, and the text of a growing list of tokens
    model.py          where the model lies and what its files say
    engines.py        which engine, and why
    transformers_engine.py, batcher.py, cache.py, prefixes.py    plain transformers, all requests decoded together
    openvino_engine.py, openvino_pipeline.py    8-bit weights for CPUs, computed in a process of their own
    openvino_export.py, openvino_check.py    how they are made, and what they cost
    vllm_engine.py, vllm/    GPUs; it has never run with vLLM
    worker.py         what engines of one thread share
    machine.py        CPUs and memory

It travels into the image with `training/prompt.py` and `infra/cli.py` and imports nothing else of the project.
"""
