# What the tools share; sourced by them, not run.
#
# need build|generate|test|demo|bench|floor|peers ...   installs what those need and this machine lacks
# need_swift                          stops with a sentence when Swift is missing or too old
# release_flags                       how `swift build` makes what people use: nothing of Swift is needed where it runs
# say TEXT, fail TEXT                 one line for people; fail also ends the script

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=${DRIVE_BACKUP_BUILD_DIR:-$root/.build}
release_flags=(--configuration release --static-swift-stdlib)
PATH=$PATH:/usr/sbin:/sbin

if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi

say() { printf '%s==>%s %s\n' "$bold" "$plain" "$*"; }
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# A line: what needs it, the Debian package, and how to see that it is there: a command, a file below
# the include directories, "python:MODULE", "system-python:MODULE" (of the distribution's own interpreter, whichever
# python3 comes first in PATH), or "static:PROGRAM" (one that needs no libraries).
requirements='
build     pkg-config          pkg-config
build     liburing-dev        liburing.h
build     libprotobuf-c-dev   protobuf-c/protobuf-c.h
build     zlib1g-dev          zlib.h
build     libzstd-dev         zstd.h
build     libxxhash-dev       xxhash.h
build     libssl-dev          openssl/evp.h
build     libsqlite3-dev      sqlite3.h
generate  protobuf-compiler   protoc
generate  protobuf-c-compiler protoc-gen-c
generate  libprotobuf-dev     google/protobuf/descriptor.proto
test      qemu-utils          qemu-img
test      qemu-utils          qemu-io
test      e2fsprogs           mke2fs
test      python3             python3
test      python3-venv        python:ensurepip
test      qemu-utils          qemu-nbd
test      libnbd-bin          nbdcopy
test      libnbd-bin          nbdinfo
test      libnbd-bin          nbdfuse
test      nbdkit              nbdkit
test      fuse3               fusermount3
test      python3-libnbd      system-python:nbd
test      fio                 fio
test      qemu-system-@system@ qemu-system-@machine@
test      busybox-static      static:/bin/busybox
test      cpio                cpio
test      dpkg                dpkg-deb
test      e2fsprogs           debugfs
test      xfsprogs            mkfs.xfs
test      btrfs-progs         mkfs.btrfs
test      e2fsprogs           e2fsck
bench     qemu-utils          qemu-img
bench     qemu-utils          qemu-io
bench     qemu-system-common  qemu-storage-daemon
bench     fio                 fio
bench     nbdkit              nbdkit
bench     libnbd-bin          nbdcopy
bench     libnbd-bin          nbdfuse
bench     fuse3               fusermount3
bench     xfsprogs            mkfs.xfs
bench     btrfs-progs         mkfs.btrfs
floor     gcc                 cc
floor     make                make
peers     g++                 g++
peers     make                make
peers     pkg-config          pkg-config
peers     libgrpc++-dev       grpcpp/grpcpp.h
peers     protobuf-compiler   protoc
peers     libprotobuf-dev     google/protobuf/message.h
peers     protobuf-compiler-grpc grpc_cpp_plugin
demo      qemu-utils          qemu-img
demo      e2fsprogs           mke2fs
demo      e2fsprogs           debugfs
'
# The guest that the tests boot has this machine's architecture.
case $(uname -m) in
    aarch64) requirements=${requirements//@system@/arm} ;;
    *) requirements=${requirements//@system@/x86} ;;
esac
requirements=${requirements//@machine@/$(uname -m)}

is_there() {
    case $1 in
        system-python:*) /usr/bin/python3 -c "import ${1#system-python:}" 2>/dev/null ;;
        static:*) [ -x "${1#static:}" ] && ! ldd "${1#static:}" >/dev/null 2>&1 ;;
        python:*) python3 -c "import ${1#python:}" 2>/dev/null ;;
        *.h | *.proto) [ -e "/usr/include/$1" ] || [ -e "/usr/local/include/$1" ] \
            || [ -e "/usr/include/$(uname -m)-linux-gnu/$1" ] ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

missing_packages() {
    local purpose package evidence
    while read -r purpose package evidence; do
        [ -n "$purpose" ] || continue
        case " $* " in *" $purpose "*) ;; *) continue ;; esac
        is_there "$evidence" || echo "$package"
    done <<<"$requirements" | sort -u
}

need() {
    local packages administrator=()
    packages=$(missing_packages "$@" | tr '\n' ' ')
    packages=${packages% }
    [ -n "$packages" ] || return 0

    command -v apt-get >/dev/null 2>&1 || fail "this machine lacks $packages (the names are Debian's) and has no" \
        "apt-get: install them with your package manager, then run this again"
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null 2>&1 && { [ -t 0 ] || sudo -n true 2>/dev/null; } \
            || fail "this machine lacks $packages: run 'apt-get install $packages' as root, then run this again"
        administrator=(sudo)
    fi
    say "Installing $packages"
    local apt=("${administrator[@]}" env DEBIAN_FRONTEND=noninteractive
        apt-get -q -y -o DPkg::Lock::Timeout=120 -o APT::Install-Recommends=false)
    # Word splitting makes one argument of each package's name.
    # shellcheck disable=SC2086
    { "${apt[@]}" update && "${apt[@]}" install $packages; } >"${TMPDIR:-/tmp}/drive-backup-install.$$" 2>&1 </dev/null \
        || { tail -n 20 "${TMPDIR:-/tmp}/drive-backup-install.$$" >&2; fail "couldn't install $packages; the last lines" \
            "above say why"; }
    rm -f "${TMPDIR:-/tmp}/drive-backup-install.$$"
    packages=$(missing_packages "$@" | tr '\n' ' ')
    [ -z "$packages" ] || fail "$packages: installed, but still not found"
}

need_swift() {
    command -v swift >/dev/null 2>&1 \
        || fail "Swift 6.2 or later is needed, and there is no 'swift' in PATH: see https://www.swift.org/install/linux"
    local version
    version=$(swift --version 2>/dev/null | sed -n 's/.*Swift version \([0-9]*\.[0-9]*\).*/\1/p' | head -n 1)
    case $version in
        6.[01] | [0-5].*) fail "Swift 6.2 or later is needed; 'swift --version' says $version:" \
            "see https://www.swift.org/install/linux" ;;
        '') fail "Swift 6.2 or later is needed, and 'swift --version' doesn't say a version" ;;
    esac
}
