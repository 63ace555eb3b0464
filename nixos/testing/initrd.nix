# An initrd of the testing systems: the store paths of a closure, kernel modules in their order, and what `script` puts below $root,
# /init among it.
#   contents    what the closure is of
#   modules     in the order in which stage 1 loads them; those that a kernel has built in, its package lacks
#   attributes  what the script needs besides
{ shell, kernel }:
name: { contents, modules, attributes, script }:

shell.run "initrd-${name}" ({
  inherit kernel modules;
  exportReferencesGraph = [ "closure" contents ];
} // attributes) ''
  root=$PWD/root
  mkdir -p $root/nix/store $root/modules $root/proc $root/sys $root/dev $root/run $root/tmp
  for module in $modules; do
    test -e $kernel/modules/$module.ko || continue
    cp $kernel/modules/$module.ko $root/modules/
    echo $module >> $root/modules/order
  done
  ${script}
  grep '^/nix/store/' closure | sort -u | while read -r path; do
    cp -a $path $root/nix/store/
  done
  mkdir $out
  cd $root
  find . | sort | cpio -o -H newc -R 0:0 | gzip -9n > $out/initrd
''
