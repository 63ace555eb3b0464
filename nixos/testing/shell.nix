# A build environment of one static busybox. busybox picks its applet from the name it is called
# by, so the folder that comes in carries one link, `sh`, and the package has one for every applet.
{ busybox }:

let
  seed = builtins.path { name = "busybox-seed"; path = busybox; };
in
rec {
  package = derivation {
    name = "busybox";
    system = "x86_64-linux";
    builder = "${seed}/sh";
    args = [ "-euc" ''
      ${seed}/busybox mkdir -p $out/bin
      ${seed}/busybox cp ${seed}/busybox $out/bin/busybox
      for applet in $($out/bin/busybox --list); do
        test $applet = busybox || ${seed}/busybox ln -s busybox $out/bin/$applet
      done
    '' ];
  };

  # A derivation built by `script`, with the attributes as variables and every applet on the PATH.
  run = name: attributes: script: derivation (attributes // {
    inherit name;
    system = "x86_64-linux";
    builder = "${package}/bin/sh";
    args = [ "-euc" script ];
    PATH = "${package}/bin";
  });
}
