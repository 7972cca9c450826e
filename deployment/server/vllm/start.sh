#!/bin/sh
# vLLM and the contract in front of it, in one container: if either ends, the container does, and is started again.
set -eu
model=$(dirname "$(find "$AZUREML_MODEL_DIR" -name config.json | awk '{ print length, $0 }' | sort -n | head -1 | cut -d" " -f2-)")
python3 -m vllm.entrypoints.openai.api_server --model "$model" --host 127.0.0.1 --port 8000 \
    --enable-prefix-caching &
vllm=$!
python3 -m deployment.server --model "$model" &
server=$!
# SIGTERM is for the server, which drains; vLLM goes after it
trap 'kill -TERM $server; wait $server; kill -TERM $vllm; exit 0' TERM INT
while kill -0 $vllm 2>/dev/null && kill -0 $server 2>/dev/null; do sleep 1; done
kill -TERM $server $vllm 2>/dev/null || true
exit 1
