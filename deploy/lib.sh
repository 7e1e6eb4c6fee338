# What `deploy/up` and `deploy/test` share: installing what is missing. Sourced, not run.

# need PROGRAM PACKAGE: notes PACKAGE when PROGRAM is not on the path.
missing_programs=()
missing_packages=()
need() {
    command -v "$1" >/dev/null 2>&1 || PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || {
        missing_programs+=("$1")
        missing_packages+=("$2")
    }
}

# need_file FILE PROGRAM PACKAGE: the same for something that is not a program on the path.
need_file() {
    [ -e "$1" ] || {
        missing_programs+=("$2")
        missing_packages+=("$3")
    }
}

# What building takes.
need_to_build() {
    command -v cargo >/dev/null 2>&1 || {
        echo "cargo is missing: install a Rust toolchain (https://rustup.rs), then run this again." >&2
        exit 1
    }
    need cc gcc
    need_file /usr/lib/x86_64-linux-gnu/libc.a "a static libc" libc6-dev
    need protoc protobuf-compiler
    need_file /usr/include/google/protobuf/descriptor.proto "protobuf's own .proto files" libprotobuf-dev
}

# What a local cluster takes.
need_to_run() {
    need containerd containerd
    need runc runc
    [ -x /opt/cni/bin/bridge ] || need_file /usr/lib/cni/bridge "the CNI plugins" containernetworking-plugins
    need iptables iptables
    need conntrack conntrack
    need ip iproute2
    need busybox busybox-static
    need curl curl
}

# Installs what was noted: by apt on Debian and its kin; elsewhere it names the programs and gives up.
install_missing() {
    [ "${#missing_packages[@]}" -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "These programs are needed and were not found: ${missing_programs[*]}" >&2
        echo "Install them with this system's package manager, then run this again." >&2
        exit 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        echo "As root: apt-get install ${missing_packages[*]}" >&2
        exit 1
    fi
    echo "Installing ${missing_packages[*]} ..."
    # Services of these packages must not start: Skiff runs its own.
    local policy=/usr/sbin/policy-rc.d made=
    [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && made=1; }
    if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${missing_packages[@]}"; } >/tmp/skiff-apt.log 2>&1; then
        [ -z "$made" ] || rm -f "$policy"
        tail -n 20 /tmp/skiff-apt.log >&2
        echo "Installing failed; the whole of it is in /tmp/skiff-apt.log." >&2
        exit 1
    fi
    [ -z "$made" ] || rm -f "$policy"
}
