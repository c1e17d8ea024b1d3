#!/usr/bin/env bash
# Builds .venv: the package (editable) and everything it needs, at the versions of requirements.lock.
#
#   scripts/setup.sh         build it, or do nothing when pyproject.toml and the lock are those it was built from
#   scripts/setup.sh lock    resolve pyproject.toml anew in a fresh environment and write requirements.lock
#
# PYTHON names the interpreter (default: the first of python3, python3.13, 3.12, 3.11 that is 3.11 or newer).
#
# How, and why so: torch comes by pip, because pip knows where a machine keeps its own torch (find-links, mirrors, a
# CUDA index), and without byte-compiling, which is half of its time. The rest comes by uv, which takes seconds where
# pip takes minutes (docs/reports/recipe_first_runs.md). uv finds torch already there and leaves it. Where uv cannot do
# it (it does not read pip's configuration) pip does it; where the pins do not fit, pyproject.toml's ranges do.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

# ---- which Python ----

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local name
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if recent "$name"; then command -v "$name"; return; fi
  done
  fail "no Python 3.11 or newer found (tried: ${PYTHON:-python3 python3.13 python3.12 python3.11}): install one, or name it: make setup PYTHON=/path/to/python"
}

# ---- the environment ----

as_root() {  # run a command as root if that needs no password
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else return 1; fi
}

create() {  # folder
  local version
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then  # Debian puts them into packages of their own
    say "set-up: Python $version has no venv module, trying apt-get install python$version-venv"
    local package="python$version-venv"
    if ! { command -v apt-get >/dev/null && as_root apt-get -qq update >&2 \
           && as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "$package" >&2; }; then
      fail "Python $version cannot make virtual environments: as root, run: apt-get install $package"
    fi
  fi
  rm -rf "$1"
  "$python" -m venv "$1" || fail "'$python -m venv $1' failed, see above"
}

# ---- packages ----

quiet=()
[ -t 2 ] || quiet=(-q)

by_pip() { "$1/bin/python" -m pip install "${quiet[@]}" --disable-pip-version-check "${@:2}" >&2; }  # folder, arguments

by_uv() {  # folder, arguments; pip's index is passed on
  [ -x "$1/bin/uv" ] || return 1
  local index; index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$("$1/bin/python" -m pip config get global.index-url 2>/dev/null || true)}}
  env ${index:+UV_DEFAULT_INDEX="$index"} "$1/bin/uv" pip install "${quiet[@]}" --python "$1/bin/python" "${@:2}" >&2
}

unpinned="set-up: that did not work (see above): the versions of requirements.lock were tested on another Python or system;
set-up: now trying the newest ones that pyproject.toml allows"

install() {  # folder, constraints ...
  local folder=$1 torch; shift
  torch=$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
  [ -n "$torch" ] || fail "pyproject.toml names no torch==VERSION"
  say "set-up: torch (the largest download)"
  by_pip "$folder" -q --no-compile "$@" "$torch" || { [ $# -gt 0 ] && say "$unpinned" && by_pip "$folder" -q --no-compile "$torch"; } || return 1
  by_pip "$folder" -q -q "$@" uv || by_pip "$folder" -q -q uv || say "set-up: no uv for this machine"
  say "set-up: the other packages"
  by_uv "$folder" "$@" -e '.[test]' && return
  if [ $# -gt 0 ]; then say "$unpinned"; by_uv "$folder" -e '.[test]' && return; fi
  say "set-up: uv could not do it, trying pip, which takes some minutes"
  by_pip "$folder" "$@" -e '.[test]' || { [ $# -gt 0 ] && say "$unpinned" && by_pip "$folder" -e '.[test]'; }
}

lock() {
  local folder; folder=$(mktemp -d)
  trap "rm -rf '$folder'" EXIT  # now, while the name is known
  create "$folder/venv"
  install "$folder/venv" || fail "the packages could not be installed, see above"
  # torch's own needs differ from machine to machine (CUDA or not), and it is pinned in pyproject.toml.
  { echo "# The tested versions: constraints for scripts/setup.sh, written by 'make lock' on Python $("$folder/venv/bin/python" -c 'import platform; print(platform.python_version())')."
    "$folder/venv/bin/python" -m pip freeze --disable-pip-version-check --exclude-editable \
      | grep -v -i -E '^((torch|pip|setuptools|wheel)|(triton|nvidia|cuda)[-_a-z0-9]*)==' | sort -f
  } > "$folder/lock"
  cp "$folder/lock" requirements.lock
  say "requirements.lock: $(grep -c == requirements.lock) packages"
}

python=$(find_python)
if [ "${1:-}" = lock ]; then lock; exit; fi

# Two at once (make demo beside make test) wait for each other.
if command -v flock >/dev/null; then exec 9<pyproject.toml; flock 9; fi

# What the environment was made of: it is made anew or completed when this changes, also when the folder was moved.
state="$({ cat pyproject.toml requirements.lock; grep __version__ nvg/__init__.py; } | cksum) $("$python" -c 'import sys; print(sys.version, sys.base_prefix)') $PWD"
if [ -x .venv/bin/python ] && [ "$(cat .venv/nvg-setup 2>/dev/null)" = "$state" ]; then exit 0; fi

started=$SECONDS
say "set-up: virtual environment .venv with $python ($("$python" --version))"
if ! .venv/bin/python -m pip --version >/dev/null 2>&1 || [ "$(tail -n 1 .venv/nvg-setup 2>/dev/null)" != "$(tail -n 1 <<<"$state")" ]; then
  create .venv
fi
install .venv -c requirements.lock || fail "the packages could not be installed, see above. Is the package index within reach?"
.venv/bin/python -c 'import torch, ray, mlflow, omegaconf, nvg.config' || fail "the packages are installed but cannot be imported, see above"
printf '%s\n' "$state" > .venv/nvg-setup
say "set-up: done in $((SECONDS - started)) s"
