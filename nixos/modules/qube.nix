# What every qube's NixOS gets. `nexus.qube` is filled in by dom0's module, or by hand where the qube is built by itself:
# `{ nexus.qube = { name = "work"; declaration = …; }; }`.
{ config, lib, pkgs, ... }:

let
  nexus = import ../lib;
  network = import ./network.nix;
  cfg = config.nexus.qube;

  complete = nexus.complete cfg.declaration;
  qube = complete.qubes.${cfg.name};
  made = nexus.ofQube cfg.declaration cfg.name;

  isNetvm = builtins.any (other: other.netvm == cfg.name) (builtins.attrValues complete.qubes);
  nameServers = if qube.netvm == null then [ ] else complete.network.dns;

  text = name: contents: pkgs.writeText name contents;
  files = folder: set: lib.mapAttrs' (name: contents: lib.nameValuePair "${folder}/${name}" { text = contents; }) set;
  execs = lib.filterAttrs (_: service: service.kind == "exec") qube.services;
  sockets = lib.filterAttrs (_: service: service.kind == "socket") qube.services;
  # The services of administration that are programs of the qube.
  administration = (import ../lib/policy.nix).inContainers;
  starterSocket = "/run/nexus-as-user.sock";
  nspawn = import ./nspawn.nix {
    inherit config lib pkgs;
    inherit (cfg) agent;
    inherit (qube) user;
    owner = (import ./containers.nix).ofQube;
  };
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
      # Xen asks for a shutdown, and the kernel runs this (drivers/xen/manage.c).
      boot.kernel.sysctl."kernel.poweroff_cmd" = "${config.systemd.package}/bin/systemctl poweroff";
      # The clock is Xen's.
      services.timesyncd.enable = lib.mkDefault false;

      # --- its root: nothing but the private volume is kept
      fileSystems."/" = { device = "tmpfs"; fsType = "tmpfs"; options = [ "mode=0755" "size=50%" ]; };
      nix.enable = lib.mkDefault false;

      # --- nobody logs in unless that is asked for
      services.openssh.enable = lib.mkDefault false;
      systemd.services."serial-getty@hvc0".enable = lib.mkDefault false;
      systemd.services."getty@tty1".enable = lib.mkDefault false;

      # --- calls
      systemd.tmpfiles.rules = [ "d /run/nexus 0755 ${qube.user} root -" ]
        ++ lib.optional (qube.containers != { }) "d /run/nexus/containers 0755 ${qube.user} root -";
      users.users.${qube.user} = { isNormalUser = lib.mkDefault true; uid = lib.mkDefault 1000; };
      environment.etc = lib.mkMerge ([
        { "nexus/agent.json".source = text "agent.json" (builtins.toJSON made.agent); }
        (files "nexus/policy.d" made.policy)
        (files "nexus/rpc-config" made.rpcConfig)
        (lib.mapAttrs' (name: service: lib.nameValuePair "nexus-rpc/${name}" { source = service.program; }) execs)
        (lib.mapAttrs' (name: service: lib.nameValuePair "nexus-rpc/${name}" { source = service.socket; }) sockets)
        (nspawn.settings made.containers)
      ]);
    }

    (lib.mkIf (qube.store != null) {
      fileSystems."/nix/store" = { device = "/dev/${qube.store}"; fsType = "erofs"; options = [ "ro" ]; neededForBoot = true; };
    })

    (lib.mkIf (qube.private != null) {
      fileSystems."/var/lib" = {
        device = "/dev/${qube.private.vdev}";
        fsType = "ext4";
        autoFormat = true;
        autoResize = true;
        neededForBoot = true;
      };
    })

    # --- the network: a qube without a netvm has what its own configuration says
    (lib.mkIf (qube.netvm != null) {
      networking.useDHCP = lib.mkDefault false;
      systemd.services.nexus-network = network.client { inherit pkgs; };
    })
    (lib.mkIf (nameServers != [ ]) { networking.nameservers = nameServers; })

    (lib.mkIf isNetvm {
      boot.kernelModules = [ "xen-netback" ];
      # Nobody else configures its clients' interfaces.
      networking.networkmanager.unmanaged = [ "interface-name:vif*" ];
      systemd.services.nexus-netvm = network.netvm { inherit pkgs; rules = text "nexus-netvm.nft" network.rules; };
    })

    (lib.mkIf (cfg.agent != null) (nspawn.control { services = "nexus-rpc"; rpcConfig = "nexus/rpc-config"; }))
    (lib.mkIf (cfg.agent != null) {
      # What dom0 does here by `nxl exec' and `logs', as the agent's user.
      environment.etc = builtins.listToAttrs (map
        (name: lib.nameValuePair "nexus-rpc/${name}" { source = "${cfg.agent}/bin/nexus-service"; })
        administration);
      # The agent is no root, and speaks to Xen: grants, event channels, xenstore.
      users.groups = { nexus = { }; systemd-journal = { }; };
      environment.systemPackages = [ cfg.agent ];
      services.udev.extraRules = ''
        SUBSYSTEM=="misc", KERNEL=="xen/evtchn|xen/gntalloc|xen/gntdev|xen/xenbus", GROUP="nexus", MODE="0660"
      '';
      # The same for those that are there before udev is.
      systemd.tmpfiles.rules = map (device: "z /dev/xen/${device} 0660 root nexus -") [ "evtchn" "gntalloc" "gntdev" "xenbus" ];
      systemd.services.nexus-agent = {
        description = "Calls of this qube and its containers";
        wantedBy = [ "multi-user.target" ];
        # When the rule above was followed.
        wants = [ "systemd-udev-settle.service" ];
        after = [ "systemd-udev-settle.service" ];
        serviceConfig = {
          ExecStart = "${cfg.agent}/bin/nexus-agent --config /etc/nexus/agent.json";
          # Its sockets are there.
          Type = "notify";
          User = qube.user;
          # The second reads the journal, for nexus.Logs.
          SupplementaryGroups = "nexus systemd-journal";
          Restart = "always";
          RestartSec = "200ms";
          LimitNOFILE = 65536;
          NoNewPrivileges = true;
        };
      };
      # dom0 takes a new generation back that does not say this in time.
      systemd.services.nexus-ready = {
        description = "Tell dom0 that this qube is up";
        wantedBy = [ "multi-user.target" ];
        after = [ "multi-user.target" "nexus-agent.service" ];
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          ExecStart = "${cfg.agent}/bin/nexus-agent --ready";
        };
      };
      systemd.services.nexus-memory = {
        description = "Tell dom0 how much memory is in use";
        wantedBy = [ "multi-user.target" ];
        serviceConfig = {
          ExecStart = "${cfg.agent}/bin/nexus-agent --memory";
          Restart = "on-failure";
          RestartSec = 10;
          User = qube.user;
          SupplementaryGroups = "nexus";
          NoNewPrivileges = true;
          CapabilityBoundingSet = "";
          ProtectSystem = "strict";
          ProtectHome = true;
          PrivateTmp = true;
          RestrictAddressFamilies = "AF_UNIX";
        };
      };
    })

    (lib.mkIf (cfg.agent != null && qube.users != [ ]) {
      # Services as another user, where that is declared: root's part is behind a socket that the agent's user may connect to, and runs
      # what is in /etc/nexus-rpc as whom agent.json names.
      systemd.sockets.nexus-as-user = {
        description = "Services of this qube as other users";
        wantedBy = [ "sockets.target" ];
        socketConfig = {
          ListenStream = starterSocket;
          Accept = true;
          SocketUser = qube.user;
          SocketMode = "0600";
          # Those that are at once are counted; not those in a time, after which systemd would close the socket.
          MaxConnections = 256;
          TriggerLimitIntervalSec = 0;
        };
      };
      systemd.services."nexus-as-user@" = {
        description = "A service of this qube as another user";
        unitConfig.CollectMode = "inactive-or-failed";
        serviceConfig = {
          ExecStart = "${cfg.agent}/bin/nexus-service as-user";
          StandardInput = "socket";
          StandardOutput = "journal";
          StandardError = "journal";
          # What a service leaves running goes on, as it does without this.
          KillMode = "process";
        };
      };
    })

    (lib.mkIf (qube.containers != { }) (nspawn.run {
      declared = qube.containers;
      configs = cfg.containers;
      shared = if nameServers == [ ] then { } else { networking.nameservers = nameServers; };
    }))
  ];
}
