#!@shell@
# Stage 2 of a testing guest: says what it sees of the machine, then serves jobs until it is told
# to go.
#
# A job is a shell command that dom0 writes to data/job as "NUMBER COMMAND". The guest clears the
# node, runs the command with its output on the console between two marker lines, and writes the end
# of that output to data/job-output and "NUMBER STATUS" to data/job-status. So one boot serves many
# checks, with nothing but xenstore.
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

serve() {
    number=${1%% *}
    echo "@job $number begin"
    sh -c "${1#* }" < /dev/null > /run/job-output 2>&1
    status=$?
    cat /run/job-output
    echo "@job $number end $status"
    # A message of xenstore holds 4 KiB. -R: as it is, without reading escapes into it.
    xenstore-write -R data/job-output "$(tail -c 2000 /run/job-output)"
    xenstore-write data/job-status "$number $status"
}

# The kernel itself takes Xen's request to shut down, and runs these two programs.
mkdir -p /sbin
for program in poweroff reboot; do
    printf '#!/bin/sh\necho "@shutdown %s" > /dev/console\nexec /bin/%s -f\n' $program $program > /sbin/$program
    chmod 755 /sbin/$program
done

xenstore-write data/ready 1

# The watch fires once when it is set, and then for every write.
xenstore-watch data/job | while read -r path; do
    job=$(xenstore-read -R data/job 2>/dev/null)
    test -n "$job" || continue
    xenstore-write data/job ""
    serve "$job"
done
echo "stage 2: xenstore-watch ended"
poweroff -f
