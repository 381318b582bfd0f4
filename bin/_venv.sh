# Sourced by bin/serve and bin/test: lets launcher/venv.py make .venv and install a pinned set into it, once.

# Through links to bin/serve and bin/test too.
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." || exit 1

find_python() {
    for candidate in "${PYTHON:-}" python3.12 python3.11 python3.13 python3; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11 or newer is needed, and none was found (set PYTHON to name one)." >&2
    return 1
}

# The set for this machine: gpu where an NVIDIA driver answers, else cpu.
requirements_file() {
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
        echo requirements.txt
    else
        echo requirements-cpu.txt
    fi
}

# ensure_venv FILE...: .venv holds what the files name.
ensure_venv() {
    local python
    python=$(find_python) || return 1
    "$python" launcher/venv.py "$@"
}
