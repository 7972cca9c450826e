#!/bin/sh
# Make .venv from requirements.lock. Can be interrupted and run again: .venv/.ready is written last.
set -eu
cd "$(dirname "$0")"

python=
for found in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
    if [ -n "$found" ] && "$found" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
        python=$found
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: no Python 3.11, 3.12 or 3.13 is on PATH, and the project needs one of them" >&2
    echo "  next: install one, or name it: make setup PYTHON=/path/to/python3.11" >&2
    exit 1
fi

echo "setting up .venv with $("$python" --version): about 6 GB, most of it torch with its CUDA libraries" >&2
[ -x .venv/bin/python ] && .venv/bin/python -c 'import pip' 2>/dev/null || "$python" -m venv --clear .venv
.venv/bin/python -m uv --version >/dev/null 2>&1 || .venv/bin/python -m pip install --quiet uv
.venv/bin/python -m uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock
.venv/bin/python -m uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
touch .venv/.ready
