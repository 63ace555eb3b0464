#!@busybox@/bin/sh
# Stage 2 of a qube or a container: what of a NixOS lies outside of the store, and on to systemd.
export PATH=@busybox@/bin

mkdir -p /bin /etc /home /root /run /srv /tmp /usr/bin /var/empty
chmod 1777 /tmp
chmod 700 /root
ln -sfn @toplevel@ /run/current-system
ln -sfn @toplevel@ /run/booted-system
cp -a @toplevel@/etc/. /etc/
# Empty, so that this is nobody's first boot, which would have systemd enable units by presets.
test -e /etc/machine-id || : > /etc/machine-id
for home in @homes@; do
    mkdir -p "${home%:*}"
    chown "${home#*:}" "${home%:*}"
done
ln -sfn /run/current-system/sw/bin/sh /bin/sh
ln -sfn /run/current-system/sw/bin/env /usr/bin/env
# What Debian's systemd looks for at places that NixOS' has in its own package.
mkdir -p /lib
ln -sfn @systemd@/lib/systemd /lib/systemd
ln -sfn @systemd@/bin/systemctl /bin/systemctl
ln -sfn /run/current-system/sw/bin/mount /bin/mount
ln -sfn /run/current-system/sw/bin/umount /bin/umount

exec @systemd@/lib/systemd/systemd "$@"
