#!/bin/busybox sh
# Process 1 of the test machine: mount what the tests need, run them, say how it ended, switch off.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp WEIR_BIN=/bin/weir RUST_BACKTRACE=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /tmp /run /sys/fs/cgroup /sys/fs/bpf
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t securityfs securityfs /sys/kernel/security
ip link set lo up
hostname vm
ulimit -n 65536
echo "init: kernel $(uname -r)"
/bin/it --test-threads=1 $(cat /filter) 2>&1
code=$?
if [ $code = 0 ]; then echo "init: success"; else echo "init: failure $code"; fi
sync
poweroff -f
