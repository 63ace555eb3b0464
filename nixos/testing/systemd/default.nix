# What stands for NixOS where there is no nixpkgs: it evaluates our modules, and of the options that they and a qube's
# configuration set, those that matter here become a system: units, /etc, users, tmpfiles, kernel modules, file systems, programs,
# containers. systemd is PID 1, in the qube and in each container.
#
# `{ modules, ... }: { config }`, as nixpkgs' nixos/lib/eval-config.nix, with `config.system.build.toplevel`.
{ shell, pkgs, kernel }:

let
  inherit (builtins) attrNames concatMap concatStringsSep elem filter length listToAttrs map mapAttrs replaceStrings;
  lib = import ../../tests/module-system.nix;
  units = import ./units.nix { inherit pkgs; defaultPath = [ pkgs.busybox pkgs.systemd ]; };
  upstream = import ./upstream.nix;

  evalConfig = { modules, ... }: lib.evalModules {
    modules = [ nixos ] ++ modules;
    specialArgs = { inherit pkgs; };
  };

  # --- NixOS' own

  nixos = { config, lib, ... }: {
    options.boot.isContainer = lib.mkOption { type = lib.types.bool; default = false; };
    options.containers = lib.mkOption {
      type = lib.types.attrsOf (lib.types.submodule {
        options.config = lib.mkOption {
          type = { name = "system"; merge = _: values: (evalConfig { modules = values; }).config; };
        };
      });
      default = { };
    };

    config = {
      systemd.package = pkgs.systemd;
      system.build.toplevel = toplevel config;
      environment.systemPackages = [ pkgs.systemd pkgs.util-linux pkgs.busybox pkgs.bash ];
      users.users.root = { uid = 0; group = "root"; home = "/root"; };
      users.users.nobody = { uid = 65534; group = "nogroup"; home = "/var/empty"; };

      # The unit of a container, as NixOS has it (nixos-containers.nix) where it does not depend on the start script, which is ours.
      systemd.services = lib.mapAttrs'
        (name: container: lib.nameValuePair "container@${name}" {
          description = "Container '${name}'";
          wantedBy = if container.autoStart then [ "machines.target" ] else [ ];
          wants = [ "network.target" ];
          after = [ "network.target" ];
          environment.INSTANCE = "%i";
          restartIfChanged = false;
          serviceConfig = {
            SyslogIdentifier = "container %i";
            Type = "notify";
            RestartForceExitStatus = "133";
            SuccessExitStatus = "133";
            # NixOS gives it a minute: an emulated processor with others at work needs more.
            TimeoutStartSec = container.timeoutStartSec or "10min";
            TimeoutStopSec = "5min";
            Restart = "on-failure";
            Slice = "machine.slice";
            Delegate = true;
            KillMode = "mixed";
            KillSignal = "TERM";
            DevicePolicy = "closed";
          };
        })
        config.containers;
      systemd.targets = if config.containers == { } then { } else { machines = { description = "Containers"; wantedBy = [ "multi-user.target" ]; }; };
    };
  };

  # --- /etc

  users = config:
    let
      declared = config.users.users;
      normal = filter (name: declared.${name}.isNormalUser or false && !(declared.${name} ? uid)) (attrNames declared);
      numbered = first: names: listToAttrs (builtins.genList (at: { name = builtins.elemAt names at; value = first + at; }) (length names));
      ids = numbered 1000 normal // mapAttrs (_: user: user.uid) (lib.filterAttrs (_: user: user ? uid) declared);
      groups = { root = 0; tty = 5; systemd-journal = 62; users = 100; nogroup = 65534; } // numbered 900 (filter (name: name != "systemd-journal") (attrNames (config.users.groups or { })));
      members = group: filter (name: elem group (declared.${name}.extraGroups or [ ])) (attrNames declared);
    in
    {
      passwd = concatStringsSep "" (map
        (name:
          let user = declared.${name}; home = user.home or "/home/${name}"; in
          "${name}:x:${toString ids.${name}}:${toString groups.${user.group or "users"}}::${home}:/run/current-system/sw/bin/sh\n")
        (attrNames ids));
      group = concatStringsSep "" (map (name: "${name}:x:${toString groups.${name}}:${concatStringsSep "," (members name)}\n") (attrNames groups));
    };
  text = name: contents: { source = pkgs.writeText name contents; };
  # Who reads the journal (tmpfiles.d/systemd.conf of systemd).
  journal = [ "z /run/log/journal 2755 root systemd-journal - -" "Z /run/log/journal/%m ~2750 root systemd-journal - -" ];

  etc = config:
    let
      accounts = users config;
      own = {
        "group" = text "group" accounts.group;
        "passwd" = text "passwd" accounts.passwd;
        "nsswitch.conf" = text "nsswitch.conf" "passwd: files\ngroup: files\nhosts: files dns\n";
        "hosts" = text "hosts" "127.0.0.1 localhost\n::1 localhost\n";
        "os-release" = text "os-release" "ID=nixos\nNAME=NixOS\nPRETTY_NAME=\"NixOS ${version}\"\nVERSION_ID=\"${version}\"\n";
        "systemd/system".source = unitFolder config;
        "systemd/journald.conf" = text "journald.conf" "[Journal]\nStorage=volatile\nForwardToConsole=${if config.boot.isContainer then "no" else "yes"}\nMaxLevelConsole=notice\n";
        "tmpfiles.d/00-nixos.conf" = text "00-nixos.conf" (concatStringsSep "\n" (journal ++ config.systemd.tmpfiles.rules or [ ]) + "\n");
        "sysctl.d/60-nixos.conf" = text "60-nixos.conf"
          (let sysctl = config.boot.kernel.sysctl or { }; in concatStringsSep "" (map (name: "${name}=${toString sysctl.${name}}\n") (attrNames sysctl)));
      };
      # A container's, systemd-nspawn has set.
      hostname = if config.boot.isContainer then { } else { "hostname" = text "hostname" "${config.networking.hostName}\n"; };
      nameServers = config.networking.nameservers or [ ];
      resolver = if nameServers == [ ] then { } else { "resolv.conf" = text "resolv.conf" (concatStringsSep "" (map (address: "nameserver ${address}\n") nameServers)); };
      # What is no text is a path: of the store, or one that is there when the system runs.
      declared = mapAttrs
        (name: file: if file ? text then text (builtins.baseNameOf name) file.text else { inherit (file) source; })
        (config.environment.etc or { });
      files = own // hostname // resolver // declared;
    in
    shell.run "etc" {
      list = concatStringsSep "" (map (name: "${name} ${files.${name}.source}\n") (attrNames files));
      passAsFile = [ "list" ];
    } ''
      mkdir -p $out/etc
      while read -r name source; do
        mkdir -p "$out/etc/$(dirname "$name")"
        ln -s "$source" "$out/etc/$name"
      done < $listPath
    '';

  # --- units

  unitsOf = config: units config.systemd;

  unitFolder = config:
    let
      made = unitsOf config;
      isContainer = config.boot.isContainer;
      links = concatMap
        (name: map (target: "${target}.wants ${name}") made.${name}.wantedBy ++ map (target: "${target}.requires ${name}") made.${name}.requiredBy)
        (attrNames made);
      on = filter (name: made.${name}.enable) (attrNames made);
    in
    shell.run "system-units" {
      upstream = upstream.units ++ (if isContainer then [ ] else upstream.unitsOfQubes);
      wants = upstream.wants;
      from = "${pkgs.systemd}/example/systemd/system";
      units = map
        (unit: pkgs.run "unit-${replaceStrings [ "@" ] [ "-" ] unit}" { inherit unit; inherit (made.${unit}) text; passAsFile = [ "text" ]; }
          "mkdir $out; cp $textPath $out/$unit")
        on;
      off = filter (name: !made.${name}.enable) (attrNames made);
      links = concatStringsSep "" (map (link: "${link}\n") links);
      passAsFile = [ "links" ];
    } ''
      mkdir $out
      for unit in $upstream; do
        test -e $from/$unit || { echo "systemd has no $unit"; exit 1; }
        ln -s $from/$unit $out/
      done
      # Of systemd's own links between units those whose both ends are here.
      for target in $wants; do
        mkdir -p $out/$target
        for unit in $from/$target/*; do
          test ! -e "$out/''${unit##*/}" || ln -s ../''${unit##*/} $out/$target/
        done
      done
      for unit in $units; do
        name=$(ls $unit)
        if test -e $out/$name; then
          mkdir -p $out/$name.d
          ln -s $unit/$name $out/$name.d/overrides.conf
        else
          ln -s $unit/$name $out/
        fi
      done
      for unit in $off; do
        ln -sfn /dev/null $out/$unit
      done
      while read -r folder unit; do
        mkdir -p $out/$folder
        ln -sfn ../$unit $out/$folder/$unit
      done < $linksPath
      ln -s multi-user.target $out/default.target
      ln -s poweroff.target $out/ctrl-alt-del.target
    '';

  # --- the system

  version = "22.11.testing";

  toplevel = config:
    let
      name = config.networking.hostName or "container";
      inQube = !config.boot.isContainer;
      boot = import ./boot.nix { inherit shell pkgs kernel config name version; };
      kernelParams = config.boot.kernelParams or [ ];
    in
    shell.run "nixos-system-${name}-${version}" ({
      inherit version;
      inherit (pkgs) busybox systemd;
      etc = etc config;
      sw = pkgs.programs "system-path" config.environment.systemPackages;
      stage2 = ./stage-2.sh;
      homes = concatMap
        (user: let one = config.users.users.${user}; in if one.isNormalUser or false then [ "${one.home or "/home/${user}"}:${user}" ] else [ ])
        (attrNames config.users.users);
    } // (if inQube then {
      inherit kernel;
      inherit (boot) initrd;
      kernelParams = toString kernelParams;
      boot = builtins.toJSON {
        "org.nixos.bootspec.v1" = {
          label = "NixOS ${version} (${name})";
          inherit kernelParams;
          system = "x86_64-linux";
          # The builder alone knows its own output path.
          init = "@toplevel@/init";
          kernel = "${kernel}/bzImage";
          initrd = "${boot.initrd}/initrd";
          toplevel = "@toplevel@";
        };
        "org.nixos.specialisation.v1" = { };
      };
      passAsFile = [ "boot" ];
    } else { })) ''
      mkdir $out
      ln -s $etc/etc $out/etc
      ln -s $sw $out/sw
      ln -s $systemd $out/systemd
      sed -e "s|@toplevel@|$out|g" -e "s|@busybox@|$busybox|" -e "s|@systemd@|$systemd|" -e "s|@homes@|$homes|" $stage2 > $out/init
      chmod 755 $out/init
      printf %s "$version" > $out/nixos-version
      printf %s x86_64-linux > $out/system
      if test -n "''${kernel-}"; then
        ln -s $kernel/bzImage $out/kernel
        ln -s $kernel/modules $out/kernel-modules
        ln -s $initrd/initrd $out/initrd
        printf %s "$kernelParams" > $out/kernel-params
        sed "s|@toplevel@|$out|g" $bootPath > $out/boot.json
      fi
    '';
in
{
  inherit evalConfig;
  # The units of a configuration, by name, as they go into its system: for the tests.
  units = unitsOf;
}
