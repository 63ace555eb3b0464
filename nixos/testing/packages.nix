# What stands for nixpkgs' package set where there is none: programs of Debian 12, each package a store path of its own with the
# libraries that its programs load, and the few functions of nixpkgs that our modules and examples use.
#
#   shell      ./shell.nix
#   packages   folder: NAME/bin, NAME/lib …, Debian's files as they are (tests/testbed/src/packages.rs)
{ shell, packages }:

let
  imported = name: builtins.path { name = "debian-${name}"; path = packages + "/${name}"; };

  glibc = shell.run "glibc" { source = imported "glibc"; } ''
    mkdir $out
    cp -r $source/lib $out/lib
  '';
  patchelf = imported "patchelf";

  # Debian's programs look for their interpreter and libraries in /lib64 and /usr/lib. Those that a program loads are named in it
  # as RPATH, which counts for the libraries' libraries, too, so that they need no change but to have none of their own.
  debian = name: after: shell.run name { source = imported name; inherit glibc patchelf; } ''
    patch() {
      $glibc/lib/ld-linux-x86-64.so.2 --library-path $patchelf/lib:$glibc/lib $patchelf/bin/patchelf "$@"
    }
    cp -r $source $out
    chmod -R u+w $out
    mkdir -p $out/lib
    find $out -type f > files
    while read -r file; do
      test "$(head -c 4 "$file" | tail -c 3)" = ELF || continue
      case $file in
        $out/lib/*/*) ;;
        $out/lib/*) test -z "$(patch --print-rpath $file)" || patch --remove-rpath $file; continue ;;
      esac
      patch --set-interpreter $glibc/lib/ld-linux-x86-64.so.2 --force-rpath --set-rpath $out/lib:$glibc/lib $file
    done < files
    ${after}
  '';

  writeText = name: text: shell.run name { inherit text; passAsFile = [ "text" ]; } "cp $textPath $out";
  executable = name: target: text: shell.run name { inherit text; passAsFile = [ "text" ]; } ''
    mkdir -p "$(dirname "$out${target}")"
    cp $textPath "$out${target}"
    chmod 755 "$out${target}"
  '';
in
rec {
  inherit glibc writeText;
  inherit (shell) run;
  busybox = shell.package;
  bash = debian "bash" "";
  curl = debian "curl" "";
  e2fsprogs = debian "e2fsprogs" "";
  # Debian's gpg looks for its agent in /usr/bin.
  gnupg = debian "gnupg" ''
    mkdir $out/libexec
    mv $out/bin/gpg $out/libexec/gpg
    printf '#!%s/bin/sh\nexec %s/libexec/gpg --agent-program %s/bin/gpg-agent "$@"\n' ${shell.package} $out $out > $out/bin/gpg
    chmod 755 $out/bin/gpg
  '';
  htop = debian "htop" "";
  iproute2 = debian "iproute2" "";
  nexus = debian "nexus" "";
  nftables = debian "nftables" "";
  sqlite = debian "sqlite" "";
  util-linux = debian "util-linux" "";
  xenstore = debian "xenstore" "";
  # Of Xen's own package no more than that is used in a qube.
  xen = xenstore;

  # Its units lie where nixpkgs' systemd has them (example/): where it does not look for units, so that a system has those that it
  # names. It has no generators.
  systemd = debian "systemd" ''
    grep -rlE '/(lib/systemd|usr/bin|bin)/' $out/example | while read -r unit; do
      test -h "$unit" || sed -i -E "s,(^|[=!@ -])/(usr/)?(lib/systemd|bin)/,\1$out/\3/,g" "$unit"
    done
    grep -rlE '^Exec[A-Za-z]*=-?(systemd-|systemctl|journalctl)' $out/example | while read -r unit; do
      sed -i -E "s,^(Exec[A-Za-z]*=-?)(systemd-|systemctl|journalctl),\1$out/bin/\2," "$unit"
    done
  '';

  stdenv.hostPlatform.system = "x86_64-linux";
  runtimeShell = "${bash}/bin/bash";
  writeScript = name: executable name "";
  writeShellScript = name: text: executable name "" "#!${runtimeShell}\n${text}";
  writeShellScriptBin = name: text: executable name "/bin/${name}" "#!${runtimeShell}\n${text}";

  closureInfo = { rootPaths }: shell.run "closure-info" {
    exportReferencesGraph = builtins.concatLists
      (builtins.genList (number: [ "closure-${toString number}" (builtins.elemAt rootPaths number) ]) (builtins.length rootPaths));
  } ''
    mkdir $out
    cat closure-* | grep '^/nix/store/' | sort -u > $out/store-paths
  '';

  # One folder of what several packages have in bin/.
  programs = name: paths: shell.run name { inherit paths; } ''
    mkdir -p $out/bin
    for path in $paths; do
      for program in $path/bin/*; do
        test -e $out/bin/''${program##*/} || ln -s $program $out/bin/
      done
    done
  '';
}
