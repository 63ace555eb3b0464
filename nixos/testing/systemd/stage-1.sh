#!@busybox@/bin/sh
# Stage 1 of a qube with systemd: drivers, the file systems that its configuration wants for booting, and on to its init.
export PATH=@e2fsprogs@/bin:@busybox@/bin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o mode=755 tmpfs /run

stop() {
    echo "stage 1: $*"
    poweroff -f
}

while read -r module; do
    # As modprobe would read them: options MODULE NAME=VALUE …
    insmod /modules/$module.ko $(sed -n "s/^options $module //p" /modules/options) || stop "no module $module"
done < /modules/order

# Formatted is only what has nothing but zeros where a file system would begin.
prepare() {
    ! dumpe2fs -h "$1" > /dev/null 2>&1 || return 0
    [ "$(head -c 1048576 "$1" | tr -d '\0' | head -c 1 | wc -c)" = 0 ] || stop "$1 is neither empty nor ext4"
    mkfs.ext4 -q -E lazy_journal_init=1 "$1" || stop "$1 could not be formatted"
}

while read -r path device type options format resize; do
    case $device in
        /dev/*)
            tries=0
            until [ -b "$device" ]; do
                tries=$((tries + 1))
                [ $tries -lt 300 ] || stop "no $device"
                usleep 100000
            done
            [ "$format" = - ] || prepare "$device"
            ;;
    esac
    mkdir -p "/sysroot$path"
    mount -t "$type" -o "$options" "$device" "/sysroot$path" || stop "$device is not mounted on $path"
    [ "$resize" = - ] || resize2fs "$device" 2> /dev/null
done < /mounts

init=
for word in $(cat /proc/cmdline); do
    case $word in init=*) init=${word#init=} ;; esac
done
[ -x "/sysroot$init" ] || stop "no init at '$init': the command line must carry init= of the system"

for folder in proc sys dev run; do
    mkdir -p /sysroot/$folder
    mount --move /$folder /sysroot/$folder
done
exec switch_root /sysroot "$init"
