# What the scripts of this folder share. A script sources this file and calls `finding` with a Python program on
# standard input. Its own head is the record: the packages to install (`# With:`) and what was printed (`# | `).
#
# Exit status: 0 as recorded, 1 different from the record, 2 the packages could not be installed.
# FINDINGS_NEWEST=1 takes the newest releases in place of the recorded ones. PYTHON names the interpreter.

finding() {
    local script=$1 folder python status=0
    local -a packages
    read -r -a packages <<<"$(sed -n 's/^# With: *//p' "$script")"
    if [[ -n "${FINDINGS_NEWEST:-}" ]]; then
        packages=("${packages[@]%%==*}")
    fi

    folder=$(mktemp -d)
    # shellcheck disable=SC2064  # the folder's name, now
    trap "rm -rf '$folder'" EXIT
    sed -n 's/^# | //p' "$script" >"$folder/recorded"
    cat >"$folder/program.py"

    install_packages "$folder" "${packages[@]}" || {
        echo "could not install ${packages[*]}" >&2
        exit 2
    }
    python="$folder/venv/bin/python"
    echo "== $(sed -n '2s/^# //p' "$script")"
    "$python" - "${packages[@]%%[=[]*}" <<'PYTHON'
import importlib.metadata, platform, sys
print("python", platform.python_version(), *(f"{name} {importlib.metadata.version(name)}" for name in sys.argv[1:]))
PYTHON

    (
        cd "$folder"
        env -u PYTHONPATH -u TRITON_INTERPRET -u TORCH_DEVICE_BACKEND_AUTOLOAD \
            CUDA_VISIBLE_DEVICES="" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
            TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1 PYTHONWARNINGS=ignore \
            "$python" program.py >printed 2>errors
    ) || status=$?
    cat "$folder/printed"
    if [[ $status -ne 0 ]]; then
        tail -n 20 "$folder/errors" >&2
        echo "CHANGED: the program ended with status $status" >&2
        exit 1
    fi
    if ! diff --unified --label recorded --label printed "$folder/recorded" "$folder/printed" >&2; then
        echo "CHANGED: not what is recorded" >&2
        exit 1
    fi
    echo "as recorded"
}

# A virtual environment in the folder, by uv where it is installed (faster), else by venv and pip.
install_packages() {
    local folder=$1
    shift
    local python
    python=$("${PYTHON:-python3}" -c \
        'import sys; assert sys.version_info >= (3, 11), sys.version; print(sys.executable)') || return
    if command -v uv >/dev/null; then
        uv venv --quiet --python "$python" "$folder/venv" &&
            uv pip install --quiet --python "$folder/venv/bin/python" "$@"
    else
        "$python" -m venv "$folder/venv" &&
            "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    fi >&2
}
