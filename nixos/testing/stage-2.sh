#!@shell@
# Stage 2 of a testing guest: says what it sees of the machine, then serves jobs (jobs.sh) until it is told to go.
export PATH=@tools@/bin:@busybox@/bin HOME=/root

mkdir -p /root /etc
ln -s @tools@/lib /lib
ln -s @tools@/lib /lib64
ln -s @busybox@/bin /bin
hostname @hostName@
ip link set lo up

echo "@report begin"
echo "hostname $(hostname)"
echo "kernel $(uname -r)"
echo "vcpus $(grep -c '^processor' /proc/cpuinfo)"
echo "memory-kib $(awk '/^MemTotal/ { print $2 }' /proc/meminfo)"
echo "cmdline $(cat /proc/cmdline)"
grep 'System RAM' /proc/iomem | while read -r range rest; do echo "ram $range"; done
for device in evtchn gntdev gntalloc privcmd xenbus; do
    test -c /dev/xen/$device && echo "device $device"
done
echo "@report end"

# The kernel itself takes Xen's request to shut down, and runs these two programs.
mkdir -p /sbin
for program in poweroff reboot; do
    printf '#!/bin/sh\necho "@shutdown %s" > /dev/console\nexec /bin/%s -f\n' $program $program > /sbin/$program
    chmod 755 /sbin/$program
done

# What nexus-agent says where there is one: that it is up, and from which system. One that is told to be mute does not.
init=$(sed -n 's/.*init=\([^ ]*\).*/\1/p' /proc/cmdline)
grep -q testing.mute /proc/cmdline || xenstore-write data/nexus/ready "${init%/init}"
. @jobs@
echo "stage 2: xenstore-watch ended"
poweroff -f
