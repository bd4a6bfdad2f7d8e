# SPDX-License-Identifier: Apache-2.0
# A Debian 12 with nothing on it but its base, and the checkout in /root/sdrun: runs SCRIPT there, as root, with the host's network.
# Called by test_clean_debian.py in a mount and PID namespace of its own; what it installs is gone with that.
#
#   clean_debian.sh BASE SCRATCH CHECKOUT SCRIPT    BASE: what debootstrap has made
set -eu
. "$(dirname "$0")/overlay.sh"
overlay "$1" "$2"
mount --rbind /dev dev
cp /etc/resolv.conf /etc/hosts etc/
cp "${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}" root/ca.crt # registries may be behind a proxy of their own
mkdir root/sdrun
git -C "$3" ls-files -z | tar -C "$3" --null -T - -c | tar -C root/sdrun -x
cp "$4" root/script
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 PIP_CERT=/root/ca.crt \
    DEBIAN_FRONTEND=noninteractive chroot . bash -ex /root/script
