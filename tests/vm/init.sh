#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The guest's first program, in the initramfs: a root that is the host's, with what is written kept in memory.
B=/bin/busybox
$B mount -t devtmpfs dev /dev; $B mount -t proc proc /proc; $B mount -t sysfs sys /sys
while read m; do $B insmod /modules/$m || echo "insmod $m failed"; done < /modules/order
P9="trans=virtio,version=9p2000.L,msize=512000"
# Cached hard: the host must not change under a running guest.
$B mount -t 9p -o ro,$P9,cache=loose root /ro || { echo "no root"; $B poweroff -f; }
$B mount -t tmpfs -o mode=755 tmpfs /rw; $B mkdir /rw/up /rw/wk
$B mount -t overlay -o lowerdir=/ro,upperdir=/rw/up,workdir=/rw/wk overlay /new || echo "no overlay"
$B mount -t 9p -o $P9,cache=none ctl /ctl
for d in dev proc sys; do $B mkdir -p /new/$d; done
$B mount -t devtmpfs dev /new/dev; $B mkdir -p /new/dev/pts /new/dev/shm
$B mount -t devpts -o mode=620,ptmxmode=666 devpts /new/dev/pts; $B mount -t tmpfs tmpfs /new/dev/shm
$B ln -sf /proc/self/fd /new/dev/fd
for n in 0:stdin 1:stdout 2:stderr; do $B ln -sf /proc/self/fd/${n%%:*} /new/dev/${n##*:}; done
$B mount -t proc proc /new/proc; $B mount -t sysfs sys /new/sys
$B mount -t tmpfs -o mode=755 tmpfs /new/run; $B mount -t tmpfs -o mode=1777 tmpfs /new/tmp
$B mkdir -p /new/run/ctl /new/run/netns; $B mount --bind /ctl /new/run/ctl
K=/new/lib/modules/$($B uname -r)
$B mkdir -p $K; $B mount -t 9p -o ro,$P9,cache=loose mods $K || echo "no modules"
W=$($B cat /ctl/work); $B mkdir -p /new$W; $B mount -t 9p -o $P9,cache=loose work /new$W
$B ip link set lo up
$B cp /bin/busybox /init2 /new/run/
# In PID 1 itself: kernel threads share its root, so that the kernel's own module loading finds the modules.
exec $B chroot /new /run/busybox sh /run/init2
