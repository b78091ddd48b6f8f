#!/bin/sh
# Installs the Debian packages that the tests need and pip cannot bring: a real Mosquitto broker, and SoftHSM (a PKCS #11
# token made of files).
# Does nothing when they are there. Exits 0 when everything is there at the end, 3 when something is missing and may
# not be installed here (not root, no password-less sudo, or not a Debian); the tests that need it then say so, and
# with CI=true they fail instead of being skipped.
set -eu

missing=""
[ -x /usr/sbin/mosquitto ] || command -v mosquitto >/dev/null 2>&1 || missing="$missing mosquitto"
command -v softhsm2-util >/dev/null 2>&1 || missing="$missing softhsm2"

if [ -z "$missing" ]; then
    exit 0
fi

run=""
if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        run="sudo -n"
    else
        echo "debian-deps: missing:$missing. Not root and no password-less sudo, so nothing was installed." >&2
        echo "debian-deps: run as root: apt-get install$missing" >&2
        exit 3
    fi
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "debian-deps: missing:$missing, and this machine has no apt-get. Install it by your system's own means." >&2
    exit 3
fi

echo "debian-deps: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
$run apt-get -o Acquire::Retries=5 update -qq >&2
# The tests start brokers of their own: a system-wide one must not be started by the package.
policy=/usr/sbin/policy-rc.d
made_policy=""
if [ "$(id -u)" -eq 0 ] && [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made_policy=yes
fi
# shellcheck disable=SC2086  # a list of package names
status=0
$run apt-get -o Acquire::Retries=5 install -y -qq --no-install-recommends $missing >&2 || status=$?
[ -z "$made_policy" ] || rm -f "$policy"
exit "$status"
