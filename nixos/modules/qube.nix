# What every qube's NixOS gets. `nexus.qube` is filled in by dom0's module, or by hand where the qube is built by itself:
# `{ nexus.qube = { name = "work"; declaration = …; }; }`.
{ config, lib, pkgs, ... }:

let
  nexus = import ../lib;
  containers = import ./containers.nix;
  cfg = config.nexus.qube;

  complete = nexus.complete cfg.declaration;
  qube = complete.qubes.${cfg.name};
  made = nexus.ofQube cfg.declaration cfg.name;

  text = name: contents: pkgs.writeText name contents;
  files = folder: set: lib.mapAttrs' (name: contents: lib.nameValuePair "${folder}/${name}" { text = contents; }) set;
  execs = lib.filterAttrs (_: service: service.kind == "exec") qube.services;
  sockets = lib.filterAttrs (_: service: service.kind == "socket") qube.services;
  settings = name: files "nexus/containers/${name}/rpc-config" made.containers.${name}.rpcConfig;
in
{
  options.nexus.qube = {
    name = lib.mkOption {
      type = lib.types.str;
      description = "The qube's name in the declaration.";
    };
    declaration = lib.mkOption {
      type = lib.types.raw;
      description = "What is declared of all qubes of the host (`nexus` of dom0).";
    };
    agent = lib.mkOption {
      type = lib.types.nullOr lib.types.package;
      default = null;
      description = "The package with bin/nexus-agent; null leaves the agent out.";
    };
    containers = lib.mkOption {
      type = lib.types.attrsOf lib.types.deferredModule;
      default = { };
      description = "The NixOS configurations of the qube's containers.";
    };
  };

  config = lib.mkMerge [
    {
      networking.hostName = lib.mkDefault cfg.name;

      # --- a guest of Xen's
      boot.loader.grub.enable = false;
      boot.initrd.availableKernelModules = [ "xen-blkfront" "xen-netfront" "erofs" ];
      boot.kernelModules = [ "xen-gntalloc" "xen-gntdev" "xen-evtchn" "xenfs" ];
      # A channel of 1 MiB both ways takes 513 grants, one of the usual size 34: a thousand channels.
      boot.extraModprobeConfig = "options xen-gntalloc limit=65536\n";
      boot.kernelParams = [ "console=hvc0" "panic=-1" ];
      # Xen asks for a shutdown, and the kernel runs these (drivers/xen/manage.c); the guest's memory is reported by its
      # balloon driver.
      boot.kernel.sysctl."kernel.poweroff_cmd" = "${config.systemd.package}/bin/systemctl poweroff";
      # The clock is Xen's.
      services.timesyncd.enable = lib.mkDefault false;

      # --- its root: nothing but the private volume is kept
      fileSystems."/" = { device = "tmpfs"; fsType = "tmpfs"; options = [ "mode=0755" "size=50%" ]; };
      fileSystems."/nix/store" = { device = "/dev/xvda"; fsType = "erofs"; options = [ "ro" ]; neededForBoot = true; };
      nix.enable = lib.mkDefault false;

      # --- nobody logs in unless that is asked for
      services.openssh.enable = lib.mkDefault false;
      systemd.services."serial-getty@hvc0".enable = lib.mkDefault false;
      systemd.services."getty@tty1".enable = lib.mkDefault false;

      # --- calls
      users.users.${qube.user} = { isNormalUser = lib.mkDefault true; };
      environment.etc = lib.mkMerge ([
        { "nexus/agent.json".source = text "agent.json" (builtins.toJSON made.agent); }
        (files "nexus/policy.d" made.policy)
        (files "nexus/rpc-config" made.rpcConfig)
        (lib.mapAttrs' (name: service: lib.nameValuePair "nexus-rpc/${name}" { source = service.program; }) execs)
        (lib.mapAttrs' (name: service: lib.nameValuePair "nexus-rpc/${name}" { source = service.socket; }) sockets)
      ] ++ map settings (lib.attrNames qube.containers));
    }

    (lib.mkIf (qube.private != null) {
      fileSystems."/var/lib" = {
        device = "/dev/${qube.private.vdev}";
        fsType = "ext4";
        autoFormat = true;
        autoResize = true;
        neededForBoot = true;
      };
    })

    (lib.mkIf (cfg.agent != null) {
      systemd.services.nexus-agent = {
        description = "Calls of this qube and its containers";
        wantedBy = [ "multi-user.target" ];
        serviceConfig = {
          ExecStart = "${cfg.agent}/bin/nexus-agent --config /etc/nexus/agent.json";
          User = qube.user;
          RuntimeDirectory = "nexus";
          RuntimeDirectoryPreserve = true;
          Restart = "always";
          NoNewPrivileges = true;
        };
      };
    })

    (lib.mkIf (qube.containers != { }) {
      systemd.slices.nexus-containers.description = "The containers of this qube";
      systemd.tmpfiles.rules = lib.concatLists (lib.mapAttrsToList containers.folders qube.containers);
      containers = lib.mapAttrs
        (name: container: containers.nixos container // {
          config = {
            imports = [ ./container.nix ] ++ lib.optional (cfg.containers ? ${name}) cfg.containers.${name};
            nexus.services = container.services;
          };
        })
        qube.containers;
      systemd.services = lib.mapAttrs'
        (name: container:
          let system = config.containers.${name}.config.system.build.toplevel; in
          lib.nameValuePair "container@${name}" (containers.unit container // {
            script = lib.mkForce (containers.script
              {
                nspawn = "${config.systemd.package}/bin/systemd-nspawn";
                closure = "${pkgs.closureInfo { rootPaths = [ system ]; }}/store-paths";
                inherit system;
              }
              name
              container);
          }))
        qube.containers;
    })
  ];
}
