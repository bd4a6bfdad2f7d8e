# SPDX-License-Identifier: Apache-2.0
# To be sourced, in mount and PID namespaces of one's own. `overlay LOWER SCRATCH` goes to a root like LOWER, with its own /proc, /run and /tmp: what is
# written there is in SCRATCH/up, a tmpfs, and gone with the namespaces.
overlay() {
    mount -t tmpfs tmpfs "$2"
    mkdir "$2/up" "$2/work" "$2/m"
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/up,workdir=$2/work" "$2/m"
    cd "$2/m"
    mount -t proc proc proc
    mount -t sysfs sysfs sys -o ro
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs -o mode=1777 tmpfs tmp
}
