# A Debian kernel as a package: bzImage and, unpacked, the modules that the guests load.
# `source` has vmlinuz, version and modules/*.ko (or .ko.xz, as the 6.12 kernels ship them).
{ shell, name, source }:

let
  imported = builtins.path { name = "debian-kernel-${name}"; path = source; };
in
shell.run "linux-debian-${name}" { source = imported; } ''
  mkdir -p $out/modules
  cp $source/vmlinuz $out/bzImage
  cp $source/version $out/version
  cp $source/modules/* $out/modules/
  for module in $out/modules/*.xz; do
    test ! -e $module || unxz $module
  done
''
