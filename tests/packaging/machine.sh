# SPDX-License-Identifier: Apache-2.0
# A Debian machine with systemd as its first process, over this host's files: what happens in it is gone with it.
# Called by machine.py in namespaces of its own (mounts, processes, network, IPC, host name, control groups).
#
#   machine.sh SCRATCH    SCRATCH: an empty folder, over which a tmpfs is mounted
set -eu
. "$(dirname "$0")/overlay.sh"
overlay / "$1"
mount -t tmpfs tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
    touch "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/shm dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
rm -f usr/sbin/policy-rc.d etc/machine-id
touch etc/machine-id
# Who reads the pages answers apt's question with yes; what he installs must be here already, for there is no network.
echo 'APT::Get::Assume-Yes "true"; APT::Sandbox::User "root";' >etc/apt/apt.conf.d/90yes
ip link set lo up
hostname newcomer
# Not chroot: the kernel makes no user namespace (PrivateUsers= of units) for who is in one.
mkdir host
pivot_root . host
exec env -i container=sdrun PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c 'cd / && umount -l /host && rmdir /host && exec "$@"' sh \
    /lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no
