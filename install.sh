#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets nearscan up. Running it again is safe, and quick when nothing has changed.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: ./install.sh demo [OPTION...]     show it: simulated scanner and PACS (options go to 'nearscan demo')
       ./install.sh test [OPTION...]     check it: lint, types and tests (options go to pytest)
       ./install.sh appliance [--gpu]    install it on this machine as a service (root)
       ./install.sh uninstall [--purge]  remove the service; --purge removes configuration and data too (root)
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv="$here/.venv"
prefix=/opt/nearscan
etc=/etc/nearscan
state=/var/lib/nearscan
unit=/etc/systemd/system/nearscan.service

say() { printf '%s\n' "nearscan: $*"; }
die() { printf '%s\n' "nearscan: $*" >&2; exit 1; }

check_glibc() {
    local version
    version=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2) || true
    [ -n "$version" ] || die "glibc 2.35 or newer is needed, this is another libc; use a glibc-based Linux"
    [ "$(printf '%s\n' 2.35 "$version" | sort -V | head -n1)" = 2.35 ] ||
        die "glibc 2.35 or newer is needed, this is $version; use Debian 12, Ubuntu 22.04 or newer"
}

find_python() {
    local name
    for name in python3.12 python3.13 python3.11 python3; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    die "Python 3.11 to 3.13 with its venv module is needed and was not found; install e.g. python3 and python3-venv"
}

# make_venv FOLDER REQUIREMENTS: a private environment holding exactly what is locked, and this checkout.
make_venv() {
    local folder=$1 stamp mode=()
    shift
    stamp=$(cat "$here/pyproject.toml" "$@" | sha256sum | cut -d' ' -f1)
    [ "$folder" = "$venv" ] && mode=(--editable)
    if [ ! -x "$folder/bin/python" ]; then
        local python
        python=$(find_python) || exit 1
        say "making $folder with $python"
        "$python" -m venv "$folder"
    fi
    if [ "$(cat "$folder/.installed" 2>/dev/null || true)" != "$stamp" ]; then
        local lock
        for lock in "$@"; do
            say "installing ${lock#"$here"/}"
            "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
        done
        install_checkout "$folder" "${mode[@]}"
        printf '%s\n' "$stamp" >"$folder/.installed"
    elif [ "$folder" != "$venv" ]; then
        install_checkout "$folder"
    fi
}

install_checkout() {
    local folder=$1
    shift
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
        --force-reinstall "$@" "$here"
}

# Programs that tests talk to, as "program package".
peers='Orthanc orthanc
storescu dcmtk
strace strace
openssl openssl
dciodvfy dicom3tools
chromium chromium
g++ g++'

need_peers() {
    local missing=() program package
    while read -r program package; do
        PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null || missing+=("$package")
    done <<<"$peers"
    [ -e /usr/include/openigtlink ] || [ -n "$(find /usr/include -maxdepth 1 -name 'openigtlink*' -print -quit)" ] ||
        missing+=(libopenigtlink-dev)
    [ -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ] || missing+=(orthanc-dicomweb)
    [ -d /usr/share/doc/openigtlink-examples ] || missing+=(openigtlink-examples)
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        die "these packages are missing: ${missing[*]}; install them (Debian: apt-get install ${missing[*]})"
    fi
    say "installing packages: ${missing[*]}"
    install_packages "${missing[@]}"
}

# Debian starts the services it installs; a test machine must not get an open PACS by the way.
install_packages() {
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    if printf '%s\n' "$@" | grep -qx orthanc && has_systemd; then
        systemctl disable --quiet orthanc || true
    fi
}

has_systemd() { [ -d /run/systemd/system ] && command -v systemctl >/dev/null; }

run_demo() {
    check_glibc
    make_venv "$venv" "$here/requirements/base.txt"
    exec "$venv/bin/nearscan" demo "$@"
}

run_tests() {
    local started=$SECONDS
    check_glibc
    need_peers
    make_venv "$venv" "$here/requirements/base.txt" "$here/requirements/dev.txt"
    cd "$here"
    "$venv/bin/ruff" check
    "$venv/bin/ruff" format --check
    "$venv/bin/mypy"
    "$venv/bin/pytest" --numprocesses auto --maxprocesses 4 --dist loadfile "$@" # most tests wait for a peer
    say "all green in $((SECONDS - started)) s"
}

install_appliance() {
    [ "$(id -u)" -eq 0 ] || die "'appliance' installs a service; run it as root"
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin # a Python that the service's user may run too
    check_glibc
    local locks=("$here/requirements/base.txt")
    case "${1:-}" in
        --gpu) locks+=("$here/requirements/gpu.txt") ;;
        '') ;;
        *) usage >&2; exit 2 ;;
    esac
    getent passwd nearscan >/dev/null ||
        useradd --system --user-group --home-dir "$state" --no-create-home --shell /usr/sbin/nologin nearscan
    make_venv "$prefix" "${locks[@]}"
    install -d -m 0750 -o root -g nearscan "$etc"
    install -d -m 0750 -o nearscan -g nearscan "$state"
    if [ ! -e "$etc/site.yaml" ]; then
        install -m 0640 -o root -g nearscan "$here/config/mri.yaml" "$etc/site.yaml"
        say "$etc/site.yaml is a copy of config/mri.yaml: change it for this site"
    fi
    if has_systemd; then
        install -m 0644 "$here/systemd/nearscan.service" "$unit"
        systemctl daemon-reload
        systemctl enable --quiet nearscan
    else
        say "systemd does not run here, so no service is installed; start '$prefix/bin/nearscan run' yourself"
    fi
    check_as_service_user ||
        die "repair what is listed, then: $prefix/bin/nearscan check $etc/site.yaml && systemctl restart nearscan"
    first_account
    say "ready: systemctl start nearscan (or restart, if it runs), then $prefix/bin/nearscan status"
}

# Nobody can sign in at the console before there is an account. The password is typed here or the account made later.
first_account() {
    local name='' add="$prefix/bin/nearscan users add NAME --role engineer"
    [ "$("$prefix/bin/nearscan" users list --json)" = '{}' ] || return 0
    if [ -t 0 ]; then
        read -r -p "nearscan: name of the console's first account, an engineer (empty: later): " name || true
    fi
    [ -z "$name" ] || "$prefix/bin/nearscan" users add "$name" --role engineer ||
        say "no account was made; later: $add"
    [ -n "$name" ] || say "the console has no account yet; make one: $add"
}

# Root may do what the service may not, so the check runs as the service's user.
check_as_service_user() {
    (cd / && runuser -u nearscan -- "$prefix/bin/nearscan" check "$etc/site.yaml")
}

uninstall() {
    [ "$(id -u)" -eq 0 ] || die "'uninstall' removes a service; run it as root"
    case "${1:-}" in
        --purge | '') ;;
        *) usage >&2; exit 2 ;;
    esac
    if has_systemd && [ -e "$unit" ]; then
        systemctl disable --now --quiet nearscan || true
        rm -f "$unit"
        systemctl daemon-reload
    fi
    rm -rf "$prefix"
    if [ "${1:-}" != --purge ]; then
        say "removed; configuration in $etc and data in $state are kept (--purge removes them)"
        return
    fi
    rm -rf "$etc" "$state"
    if getent passwd nearscan >/dev/null; then
        userdel nearscan
    fi
    say "removed, with configuration and data"
}

command=${1:-}
[ $# -eq 0 ] || shift
case "$command" in
    demo) run_demo "$@" ;;
    test) run_tests "$@" ;;
    appliance) install_appliance "$@" ;;
    uninstall) uninstall "$@" ;;
    -h | --help) usage ;;
    *) usage >&2; exit 2 ;;
esac
